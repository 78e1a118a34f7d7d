//! What the protocol says of its HTTP form: the `google.api.http` option of each method.

use http::Method;
use prost_reflect::{DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, MethodDescriptor, Value};

use super::template::Template;

/// The package that is for users.
pub(super) const PACKAGE: &str = "millrace.api.v1";
/// The option of a method.
const OPTION: &str = "google.api.http";

/// One way to call a method.
#[derive(Debug)]
pub(super) struct Binding {
    pub verb: Method,
    pub template: Template,
    pub body: Body,
    /// The field that is the answer; `None`: all of it.
    pub response: Option<FieldDescriptor>,
    pub method: MethodDescriptor,
}

/// What the body of a request is.
#[derive(Debug)]
pub(super) enum Body {
    /// There is none; what the path does not fill is in the query.
    None,
    /// All that the path does not fill.
    Whole,
    /// This field; the rest is in the query.
    Field(FieldDescriptor),
}

impl Binding {
    /// Path of the gRPC method.
    pub(super) fn grpc_path(&self) -> String {
        format!("/{}/{}", self.method.parent_service().full_name(), self.method.name())
    }
}

/// All bindings of the methods for users.
pub(super) fn bindings(pool: &DescriptorPool) -> Result<Vec<Binding>, String> {
    let option = pool
        .get_extension_by_name(OPTION)
        .ok_or_else(|| format!("{OPTION} is not in the protocol"))?;
    let mut all = Vec::new();
    for service in pool.services().filter(|service| service.package_name() == PACKAGE) {
        for method in service.methods() {
            of_method(&method, &option, &mut all).map_err(|what| format!("{}: {what}", method.full_name()))?;
        }
    }
    for (at, one) in all.iter().enumerate() {
        let other = all[at + 1..]
            .iter()
            .find(|other| one.verb == other.verb && one.template.overlaps(&other.template));
        if let Some(other) = other {
            return Err(format!(
                "{} has a path of {}",
                one.method.full_name(),
                other.method.full_name()
            ));
        }
    }
    Ok(all)
}

fn of_method(method: &MethodDescriptor, option: &ExtensionDescriptor, all: &mut Vec<Binding>) -> Result<(), String> {
    let options = method.options();
    if !options.has_extension(option) {
        return Err(format!("has no {OPTION}"));
    }
    let value = options.get_extension(option);
    let rule = value.as_message().ok_or("is no rule")?;
    all.push(of_rule(method, rule)?);
    let more = rule.get_field_by_name("additional_bindings");
    for rule in more.iter().filter_map(|more| more.as_list()).flatten() {
        all.push(of_rule(method, rule.as_message().ok_or("is no rule")?)?);
    }
    Ok(())
}

fn of_rule(method: &MethodDescriptor, rule: &DynamicMessage) -> Result<Binding, String> {
    let text = |name: &str| {
        let value = rule.get_field_by_name(name);
        value.as_deref().and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let verbs = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    let (path, verb) = verbs
        .into_iter()
        .map(|(name, verb)| (text(name), verb))
        .find(|(path, _)| !path.is_empty())
        .ok_or("names no path")?;
    let field = |message: prost_reflect::MessageDescriptor, name: &str| {
        let field = message.get_field_by_name(name);
        field.ok_or_else(|| format!("{} has no field {name}", message.name()))
    };
    Ok(Binding {
        verb,
        template: Template::parse(&path)?,
        body: match text("body").as_str() {
            "" => Body::None,
            "*" => Body::Whole,
            name => Body::Field(field(method.input(), name)?),
        },
        response: match text("response_body").as_str() {
            "" => None,
            name => Some(field(method.output(), name)?),
        },
        method: method.clone(),
    })
}

#[cfg(test)]
mod tests {
    use millrace_proto::DESCRIPTOR_POOL;

    use super::*;

    #[test]
    fn every_method_has_a_path_of_its_own() {
        let all = bindings(&DESCRIPTOR_POOL).unwrap();
        let methods: usize = DESCRIPTOR_POOL
            .services()
            .filter(|service| service.package_name() == PACKAGE)
            .map(|service| service.methods().len())
            .sum();
        assert!(methods > 20 && all.len() > methods, "{} of {methods}", all.len());
    }
}
