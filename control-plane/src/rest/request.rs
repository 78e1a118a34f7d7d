//! From path, query and JSON body to the request message.

use millrace_common::{error::ApiError, proto_json};
use prost_reflect::{Cardinality, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, map::Entry};
use url::form_urlencoded;

use super::binding::{Binding, Body};

/// Name of a body in errors about all of it.
const BODY: &str = "body";

/// The message that a request stands for. Errors name the field, by the name that the caller gave it.
pub(super) fn message(
    binding: &Binding,
    captured: Vec<(&str, String)>,
    query: &str,
    body: &[u8],
) -> Result<DynamicMessage, ApiError> {
    let descriptor = binding.method.input();
    let mut fields = match &binding.body {
        Body::None if body.is_empty() => Map::new(),
        Body::None => {
            let what = format!(
                "must be empty: {} takes its fields from the path and the query",
                binding.verb
            );
            return Err(ApiError::invalid_field(BODY, what));
        }
        Body::Whole if body.is_empty() => Map::new(),
        Body::Whole => match parse(body)? {
            Value::Object(fields) => fields,
            _ => return Err(ApiError::invalid_field(BODY, "must be a JSON object")),
        },
        Body::Field(_) if body.is_empty() => Map::new(),
        Body::Field(field) => Map::from_iter([(field.name().to_owned(), parse(body)?)]),
    };
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        let of_body = match &binding.body {
            Body::None => false,
            Body::Whole => true,
            Body::Field(field) => named(field, key.split('.').next().unwrap_or_default()),
        };
        if of_body {
            return Err(ApiError::invalid_field(key, "belongs into the body of the request"));
        }
        put(&mut fields, &descriptor, &key, &text, &key)?;
    }
    for (path, text) in captured {
        if given(&fields, &descriptor, path).is_some_and(|given| given.as_str() != Some(&text)) {
            let what = format!("must be {text:?}, as in the path of the request, or absent");
            return Err(ApiError::invalid_field(path, what));
        }
        if given(&fields, &descriptor, path).is_none() {
            put(&mut fields, &descriptor, path, &text, path)?;
        }
    }
    proto_json::read(Value::Object(fields), &descriptor).map_err(|error| {
        let field = if error.path.is_empty() {
            BODY.to_owned()
        } else {
            error.path
        };
        ApiError::invalid_field(field, error.what)
    })
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::invalid_field(BODY, format!("is not JSON: {error}")))
}

fn named(field: &FieldDescriptor, name: &str) -> bool {
    field.name() == name || field.json_name() == name
}

fn find(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.fields().find(|field| named(field, name))
}

/// The name that a field has been given by, if it has, else its own.
fn key(fields: &Map<String, Value>, field: &FieldDescriptor) -> String {
    let name = [field.json_name(), field.name()]
        .into_iter()
        .find(|name| fields.contains_key(*name));
    name.unwrap_or_else(|| field.name()).to_owned()
}

/// What the body gives at this path, if anything.
fn given<'a>(fields: &'a Map<String, Value>, message: &MessageDescriptor, path: &str) -> Option<&'a Value> {
    let (first, rest) = path
        .split_once('.')
        .map_or((path, None), |(first, rest)| (first, Some(rest)));
    let field = find(message, first)?;
    let value = fields.get(&key(fields, &field))?;
    match (rest, field.kind()) {
        (None, _) => Some(value),
        (Some(rest), Kind::Message(inner)) => given(value.as_object()?, &inner, rest),
        _ => None,
    }
}

/// Sets the field at `path` from text of the path or the query. `whole` is the path as the caller knows it.
fn put(
    fields: &mut Map<String, Value>,
    message: &MessageDescriptor,
    path: &str,
    text: &str,
    whole: &str,
) -> Result<(), ApiError> {
    let (first, rest) = path
        .split_once('.')
        .map_or((path, None), |(first, rest)| (first, Some(rest)));
    let field = find(message, first).ok_or_else(|| {
        let known: Vec<_> = message.fields().map(|field| field.name().to_owned()).collect();
        ApiError::invalid_field(
            whole,
            format!("there is no such field; there are: {}", known.join(", ")),
        )
    })?;
    let key = key(fields, &field);
    if let Some(rest) = rest {
        let (Kind::Message(inner), false) = (field.kind(), field.is_map() || field.is_list()) else {
            return Err(ApiError::invalid_field(whole, "leads into a field that has no fields"));
        };
        let value = fields.entry(key).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inside) = value else {
            return Err(ApiError::invalid_field(whole, "is given together with what it is in"));
        };
        return put(inside, &inner, rest, text, whole);
    }
    if field.is_map() {
        return Err(ApiError::invalid_field(whole, "cannot be given in a query"));
    }
    let value = leaf(&field.kind(), text).map_err(|what| ApiError::invalid_field(whole, what))?;
    let repeated = field.cardinality() == Cardinality::Repeated;
    match fields.entry(key) {
        Entry::Vacant(place) => {
            place.insert(if repeated { Value::Array(vec![value]) } else { value });
        }
        Entry::Occupied(mut place) => match place.get_mut() {
            Value::Array(values) if repeated => values.push(value),
            _ => return Err(ApiError::invalid_field(whole, "is given twice")),
        },
    }
    Ok(())
}

/// Text as the JSON of a field: nearly all of them have a form that is a string.
fn leaf(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("must be true or false".to_owned()),
        },
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Timestamp" | "google.protobuf.Duration" | "google.protobuf.FieldMask" => {
                Ok(Value::String(text.to_owned()))
            }
            _ => Err("has fields of its own: name one of them, with a dot".to_owned()),
        },
        _ => Ok(Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use millrace_proto::{DESCRIPTOR_POOL, api::v1 as proto};

    use super::{super::binding, *};

    fn request<M: prost::Message + Default>(verb: &Method, target: &str, body: &str) -> Result<M, ApiError> {
        let all = binding::bindings(&DESCRIPTOR_POOL).unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (binding, captured) = all
            .iter()
            .filter(|binding| binding.verb == *verb)
            .find_map(|binding| Some((binding, binding.template.matches(path)?)))
            .expect("a path of the protocol");
        let message = message(binding, captured, query, body.as_bytes())?;
        Ok(message.transcode_to().unwrap())
    }

    fn refused<M: prost::Message + Default + std::fmt::Debug>(
        verb: &Method,
        target: &str,
        body: &str,
    ) -> (String, String) {
        let error = request::<M>(verb, target, body).expect_err("a refusal");
        let field = &error.fields[0];
        (field.field.clone(), field.description.clone())
    }

    #[test]
    fn path_query_and_body_make_one_message() {
        let create: proto::CreatePipeRequest = request(
            &Method::POST,
            "/v1/projects/p/pipes?pipe_id=orders&validateOnly=true",
            r#"{"displayName":"Orders","destination":{"table":"t"},"scaling":{"replicas":2},"desired_state":"DESIRED_STATE_STOPPED"}"#,
        )
        .unwrap();
        assert_eq!(
            (create.parent.as_str(), create.pipe_id.as_str(), create.validate_only),
            ("projects/p", "orders", true)
        );
        let pipe = create.pipe.unwrap();
        assert_eq!(
            (pipe.display_name.as_str(), pipe.scaling.unwrap().replicas),
            ("Orders", 2)
        );
        assert_eq!(pipe.desired_state, i32::from(proto::DesiredState::Stopped));

        let update: proto::UpdatePipeRequest = request(
            &Method::PATCH,
            "/v1/projects/p/pipes/orders?update_mask=display_name,scaling.replicas",
            r#"{"name":"projects/p/pipes/orders","etag":"1"}"#,
        )
        .unwrap();
        assert_eq!(update.pipe.unwrap().name, "projects/p/pipes/orders");
        assert_eq!(update.update_mask.unwrap().paths, ["display_name", "scaling.replicas"]);

        let list: proto::ListRejectedRecordsRequest = request(
            &Method::GET,
            "/v1/projects/p/pipes/o/rejectedRecords?page_size=7&filter.start_time=2026-01-02T03:04:05Z&filter.shardId=s",
            "",
        )
        .unwrap();
        assert_eq!((list.page_size, list.parent.as_str()), (7, "projects/p/pipes/o"));
        let filter = list.filter.unwrap();
        assert_eq!(
            (filter.shard_id.as_str(), filter.start_time.unwrap().seconds),
            ("s", 1_767_323_045)
        );

        let reset: proto::ResetPositionRequest = request(
            &Method::POST,
            "/v1/projects/p/pipes/o:resetPosition",
            r#"{"shardIds":["a","b"]}"#,
        )
        .unwrap();
        assert_eq!((reset.name.as_str(), reset.shard_ids.len()), ("projects/p/pipes/o", 2));

        let planned: proto::CheckAccessRequest = request(
            &Method::POST,
            "/v1/projects/p:checkAccess",
            r#"{"planned":{"kinesis":{"region":"r"}}}"#,
        )
        .unwrap();
        let Some(proto::check_access_request::Subject::Planned(planned)) = planned.subject else {
            panic!("a planned source");
        };
        assert_eq!(
            (planned.parent.as_str(), planned.kinesis.unwrap().region.as_str()),
            ("projects/p", "r")
        );
    }

    #[test]
    fn refusals_name_the_field() {
        let create = |target: &str, body: &str| refused::<proto::CreatePipeRequest>(&Method::POST, target, body);
        let pipes = "/v1/projects/p/pipes";
        assert_eq!(create(pipes, r#"{"display_nam":"x"}"#).0, "pipe.display_nam");
        assert_eq!(
            create(pipes, r#"{"scaling":{"replicas":-1}}"#).0,
            "pipe.scaling.replicas"
        );
        assert_eq!(create(pipes, r#"{"desiredState":"NEVER"}"#).0, "pipe.desiredState");
        assert_eq!(create(pipes, "{").0, "body");
        assert_eq!(create(pipes, "[]").0, "pipe");
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(create(pipes, &deep).0, "body");
        assert!(create(&format!("{pipes}?pipe=x"), "{}").1.contains("body"));
        assert!(create(&format!("{pipes}?pipe.name=x"), "{}").1.contains("body"));
        assert_eq!(create(&format!("{pipes}?parent=projects/q"), "{}").0, "parent");
        assert!(create(&format!("{pipes}?pipeid=x"), "{}").1.contains("pipe_id"));
        assert!(create(&format!("{pipes}?pipe_id=x&pipeId=y"), "{}").1.contains("twice"));
        assert!(
            create(&format!("{pipes}?validate_only=1"), "{}")
                .1
                .contains("true or false")
        );
        let list = |target: &str| refused::<proto::ListRejectedRecordsRequest>(&Method::GET, target, "");
        let rejected = "/v1/projects/p/pipes/o/rejectedRecords";
        assert_eq!(list(&format!("{rejected}?page_size=x")).0, "page_size");
        assert!(list(&format!("{rejected}?filter=x")).1.contains("dot"));
        assert!(list(&format!("{rejected}?page_size.x=x")).1.contains("no fields"));
        assert_eq!(
            list(&format!("{rejected}?filter.start_time=yesterday")).0,
            "filter.start_time"
        );
        assert_eq!(
            refused::<proto::GetPipeRequest>(&Method::GET, "/v1/projects/p/pipes/o", "{}").0,
            "body"
        );
        let update = refused::<proto::UpdatePipeRequest>(
            &Method::PATCH,
            "/v1/projects/p/pipes/orders",
            r#"{"name":"projects/p/pipes/others"}"#,
        );
        assert_eq!(update.0, "pipe.name");
    }
}
