//! The HTTP form in OpenAPI 3.1, made of the protocol and its comments.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millrace_proto::comments;
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::{
    DESCRIPTION,
    binding::{Binding, Body, PACKAGE},
};

/// What comments end with where a field cannot be set.
const OUTPUT_ONLY: &str = "Output only.";
/// What they say where it has to be.
const REQUIRED: &str = "Required.";

/// The document.
pub(super) fn describe(bindings: &[Binding]) -> Value {
    let mut writer = Writer::default();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut calls: HashMap<String, u32> = HashMap::new();
    for binding in bindings {
        let nth = calls
            .entry(binding.grpc_path())
            .and_modify(|nth| *nth += 1)
            .or_insert(1);
        let (path, operation) = writer.operation(binding, *nth);
        let verb = binding.verb.as_str().to_ascii_lowercase();
        paths.entry(path).or_default().insert(verb, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace",
            "version": "v1",
            "description": "Moves Amazon Kinesis data streams into ClickHouse. The same API is served as gRPC, and as gRPC-Web, on the same port.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        // Where this document came from.
        "servers": [{ "url": "/", "description": format!("The control plane that served {DESCRIPTION}") }],
        "security": [{ "token": [] }],
        "tags": writer.tags(),
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "A token of TokenService. Where the control plane knows no tokens, none is needed." },
            },
            "responses": {
                "Error": {
                    "description": "An error, with its reason and the fields at fault",
                    "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
                },
            },
            "schemas": writer.schemas(),
        },
    })
}

#[derive(Default)]
struct Writer {
    messages: BTreeMap<String, MessageDescriptor>,
    enums: BTreeMap<String, EnumDescriptor>,
    services: BTreeMap<String, String>,
}

impl Writer {
    fn operation(&mut self, binding: &Binding, nth: u32) -> (String, Value) {
        let method = &binding.method;
        let service = method.parent_service();
        self.services
            .insert(service.name().to_owned(), comments::of_service(service));
        let comment = comments::of_method(method);
        let mut names = BTreeSet::new();
        let (path, mut parameters) = path_of(binding, &mut names);
        let body = match &binding.body {
            Body::None => None,
            Body::Whole => Some(self.reference(&method.input())),
            Body::Field(field) => Some(self.schema(field)),
        };
        if !matches!(binding.body, Body::Whole) {
            let captured: Vec<&str> = binding.template.variables.iter().map(|v| v.field.as_str()).collect();
            let of_body = match &binding.body {
                Body::Field(field) => Some(field.name().to_owned()),
                _ => None,
            };
            for field in method.input().fields() {
                if of_body.as_deref() != Some(field.name()) && !captured.contains(&field.name()) {
                    self.query(&field, "", &mut parameters);
                }
            }
        }
        let answer = match &binding.response {
            Some(field) => self.schema(field),
            None => self.reference(&method.output()),
        };
        let (media, description) = if method.is_server_streaming() {
            (
                "application/x-ndjson",
                "Lines of JSON, one for each message; an error is the last one",
            )
        } else {
            ("application/json", "The answer")
        };
        let mut id = format!("{}_{}", service.name(), method.name());
        if nth > 1 {
            id.push_str(&nth.to_string());
        }
        let mut operation = json!({
            "operationId": id,
            "tags": [service.name()],
            "summary": comment.split(['.', ':']).next().unwrap_or_default(),
            "description": comment,
            "parameters": parameters,
            "responses": {
                "200": { "description": description, "content": { media: { "schema": answer } } },
                "default": { "$ref": "#/components/responses/Error" },
            },
        });
        if let Some(schema) = body {
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        (path, operation)
    }

    /// Parameters of the query for a field: itself, or the fields in it.
    fn query(&mut self, field: &FieldDescriptor, before: &str, parameters: &mut Vec<Value>) {
        let name = format!("{before}{}", field.name());
        match field.kind() {
            Kind::Message(message) if message.package_name() == PACKAGE && !field.is_list() && !field.is_map() => {
                for inner in message.fields() {
                    self.query(&inner, &format!("{name}."), parameters);
                }
            }
            _ => {
                let mut schema = self.schema(field);
                let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
                parameters.push(json!({
                    "name": name, "in": "query", "required": false,
                    "description": description.unwrap_or_default(), "schema": schema,
                }));
            }
        }
    }

    /// A field's schema, with what its comment says.
    fn schema(&mut self, field: &FieldDescriptor) -> Value {
        let schema = self.bare(field);
        let comment = comments::of_field(field);
        let Value::Object(mut schema) = schema else {
            return schema;
        };
        if comment.contains(OUTPUT_ONLY) {
            schema.insert("readOnly".to_owned(), Value::Bool(true));
        }
        if !comment.is_empty() {
            schema.insert("description".to_owned(), Value::String(comment));
        }
        Value::Object(schema)
    }

    fn bare(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map()
            && let Kind::Message(entry) = field.kind()
        {
            let values = entry.map_entry_value_field();
            return json!({ "type": "object", "additionalProperties": self.kind(&values.kind()) });
        }
        let schema = self.kind(&field.kind());
        if field.is_list() {
            return json!({ "type": "array", "items": schema });
        }
        schema
    }

    fn kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({ "type": "integer", "format": "int32" }),
            Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "format": "int64", "minimum": 0 }),
            // Beyond what numbers of JavaScript hold.
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({ "type": "string", "format": "int64" }),
            Kind::Uint64 | Kind::Fixed64 => json!({ "type": "string", "format": "uint64" }),
            Kind::Float | Kind::Double => json!({ "type": "number", "format": "double" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
            Kind::Enum(values) => {
                self.enums.insert(values.name().to_owned(), values.clone());
                json!({ "$ref": format!("#/components/schemas/{}", values.name()) })
            }
            Kind::Message(message) => match message.full_name() {
                "google.protobuf.Timestamp" => json!({ "type": "string", "format": "date-time" }),
                "google.protobuf.Duration" => json!({ "type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$" }),
                "google.protobuf.FieldMask" => json!({ "type": "string" }),
                _ => self.reference(message),
            },
        }
    }

    fn reference(&mut self, message: &MessageDescriptor) -> Value {
        let name = message.name().to_owned();
        let new = self.messages.insert(name.clone(), message.clone()).is_none();
        if new {
            // What is in it is described, too.
            for field in message.fields() {
                self.bare(&field);
            }
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    fn tags(&self) -> Vec<Value> {
        let tag = |(name, comment): (&String, &String)| json!({ "name": name, "description": comment });
        self.services.iter().map(tag).collect()
    }

    fn schemas(&mut self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for (name, message) in self.messages.clone() {
            let mut properties = Map::new();
            let mut required = Vec::new();
            for field in message.fields() {
                let schema = self.schema(&field);
                let says = |what: &str| schema["description"].as_str().is_some_and(|text| text.contains(what));
                // What the path gives need not be in the body.
                if says(REQUIRED) && !matches!(field.name(), "name" | "parent") {
                    required.push(field.json_name().to_owned());
                }
                properties.insert(field.json_name().to_owned(), schema);
            }
            let mut schema = json!({ "type": "object", "properties": properties });
            if !required.is_empty() {
                schema["required"] = json!(required);
            }
            schema["description"] = Value::String(comments::of_message(&message));
            all.insert(name, schema);
        }
        for (name, values) in self.enums.clone() {
            let mut description = comments::of_enum(&values);
            for value in values.values() {
                description.push_str(&format!("\n- `{}`: {}", value.name(), comments::of_value(&value)));
            }
            let names: Vec<_> = values.values().map(|value| value.name().to_owned()).collect();
            all.insert(
                name,
                json!({ "type": "string", "enum": names, "description": description }),
            );
        }
        all.insert("Error".to_owned(), error_schema());
        all
    }
}

/// A path with a name for each of its places, and those as parameters.
fn path_of(binding: &Binding, names: &mut BTreeSet<String>) -> (String, Vec<Value>) {
    let (mut path, mut parameters) = (String::new(), Vec::new());
    let template = &binding.template;
    for (at, segment) in template.segments.iter().enumerate() {
        path.push('/');
        let Some(literal) = segment else {
            let variable = template
                .variables
                .iter()
                .find(|variable| variable.segments.contains(&at));
            let single = variable.filter(|variable| variable.segments.len() == 1);
            // `projects/*` is a project.
            let before = at
                .checked_sub(1)
                .and_then(|before| template.segments[before].as_deref());
            let name = match (single, before) {
                (Some(variable), _) => variable.field.clone(),
                (None, Some(before)) => before.trim_end_matches('s').to_owned(),
                (None, None) => format!("segment{at}"),
            };
            path.push_str(&format!("{{{name}}}"));
            if names.insert(name.clone()) {
                parameters
                    .push(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
            }
            continue;
        };
        path.push_str(literal);
    }
    if let Some(verb) = &template.verb {
        path.push(':');
        path.push_str(verb);
    }
    (path, parameters)
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "description": "As Google's APIs say what is wrong.",
        "required": ["error"],
        "properties": { "error": {
            "type": "object",
            "required": ["code", "status", "message"],
            "properties": {
                "code": { "type": "integer", "description": "The code of HTTP." },
                "status": { "type": "string", "description": "The code of gRPC, such as `NOT_FOUND`." },
                "message": { "type": "string", "description": "What is wrong, and what to do about it." },
                "details": {
                    "type": "array",
                    "description": "Each with its type in `@type`: `google.rpc.ErrorInfo` has the stable `reason`, `google.rpc.BadRequest` the fields at fault, `google.rpc.RetryInfo` when to try again.",
                    "items": { "type": "object", "required": ["@type"], "properties": { "@type": { "type": "string" } }, "additionalProperties": true },
                },
            },
        } },
    })
}

#[cfg(test)]
mod tests {
    use millrace_proto::DESCRIPTOR_POOL;

    use super::*;

    #[test]
    fn the_document_describes_what_is_there() {
        let bindings = super::super::binding::bindings(&DESCRIPTOR_POOL).unwrap();
        let document = describe(&bindings);
        let create = &document["paths"]["/v1/projects/{project}/pipes"]["post"];
        assert!(
            create["description"].as_str().unwrap().starts_with("Checks the pipe"),
            "{create:#}"
        );
        let names: Vec<_> = create["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["project", "pipe_id", "validate_only", "request_id"]);
        assert_eq!(
            create["requestBody"]["content"]["application/json"]["schema"]["$ref"],
            "#/components/schemas/Pipe"
        );
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["Pipe"]["properties"]["uid"]["readOnly"], true);
        assert_eq!(schemas["Pipe"]["required"], json!(["source", "destination"]));
        assert!(
            schemas["Settings"]["properties"]["maxInsertWait"]["description"]
                .as_str()
                .unwrap()
                .contains("50 ms")
        );
        assert!(
            schemas["DesiredState"]["description"]
                .as_str()
                .unwrap()
                .contains("`DESIRED_STATE_RUNNING`: Move records.")
        );
        // Whatever is referred to is there.
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.get(name).is_some(), "{name}");
        }
    }
}
