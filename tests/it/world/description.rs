//! Checks responses against `/openapi.json`. Every response that the tests read passes through here.

use super::Response;
use serde_json::Value;
use std::sync::OnceLock;

pub const TEXT: &str = include_str!("../../../src/openapi.json");

/// Returns the description.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| serde_json::from_str(TEXT).unwrap())
}

/// Returns each operation: its path, its method in capitals, and its responses by status.
pub fn operations() -> impl Iterator<Item = (&'static str, String, &'static Value)> {
    document()["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, operation)| {
            (path.as_str(), method.to_uppercase(), &operation["responses"])
        })
    })
}

/// Returns a value, or the value that it refers to.
pub fn resolve(value: &'static Value) -> &'static Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => document().pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

/// Panics unless `response` is described for the request at the start of `request`. A response that is not described
/// for any operation must be an error.
pub fn check(request: &str, response: &Response) {
    let mut parts = request.trim_start().split([' ', '?']);
    let (method, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let responses = operations().find(|(own, of, _)| *own == path && of == method);
    let Some((_, _, responses)) = responses else {
        let is_for_a_path = path.starts_with('/');
        assert!(!is_for_a_path || response.status >= 400, "{method} {path}: {response:?}");
        return check_response(response);
    };
    let described = responses.get(response.status.to_string());
    let described = described.unwrap_or_else(|| panic!("not for {method} {path}: {response:?}"));
    if let Err(why) = is_described_by(resolve(described), response) {
        panic!("{method} {path}: {why}: {response:?}");
    }
}

/// Panics unless `response` is described for some operation, or reports an unknown one.
pub fn check_response(response: &Response) {
    if response.status == 100 {
        return;
    }
    let status = match response.status {
        // The paths and methods that are not described have the same form of error.
        404 | 405 => "400".into(),
        status => status.to_string(),
    };
    let is_described = operations()
        .filter_map(|(_, _, responses)| responses.get(&status))
        .any(|described| is_described_by(resolve(described), response).is_ok());
    assert!(is_described, "nowhere in the description: {response:?}");
}

/// Checks that a response has the fields, the media type, and the body that are described.
fn is_described_by(described: &'static Value, response: &Response) -> Result<(), String> {
    for (name, field) in described["headers"].as_object().into_iter().flatten() {
        let value = response.field(name).ok_or_else(|| format!("no {name}"))?;
        is_valid(&field["schema"], &value.into())?;
    }
    let media_type = response.field("content-type");
    let Some(content) = described.get("content") else {
        return match response.body.is_empty() {
            true => Ok(()),
            false => Err("no body is described".into()),
        };
    };
    let schema = media_type.and_then(|media_type| content.get(media_type)?.get("schema"));
    let schema = schema.ok_or_else(|| format!("{media_type:?} is not described"))?;
    let body = match media_type {
        Some("application/json") => {
            serde_json::from_str(&response.body).map_err(|error| error.to_string())?
        }
        _ => Value::from(response.body.as_str()),
    };
    is_valid(schema, &body)
}

/// Checks that a value is valid by a schema, which may use only the keywords listed here.
fn is_valid(schema: &'static Value, value: &Value) -> Result<(), String> {
    let schema = resolve(schema).as_object().unwrap();
    for (keyword, rule) in schema {
        let holds = match (keyword.as_str(), value) {
            ("description" | "properties", _) => true,
            ("type", value) => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "string" => value.is_string(),
                "integer" => value.is_u64() || value.is_i64(),
                "number" => value.is_number(),
                other => panic!("an unknown type: {other}"),
            },
            ("const", value) => rule == value,
            ("minimum", value) => value.as_f64() >= rule.as_f64(),
            ("minLength", Value::String(text)) => text.len() as u64 >= rule.as_u64().unwrap(),
            ("required", Value::Object(members)) => {
                let mut names = rule.as_array().unwrap().iter();
                names.all(|name| members.contains_key(name.as_str().unwrap()))
            }
            ("additionalProperties", Value::Object(members)) => {
                assert_eq!(rule, false);
                members.keys().all(|name| schema["properties"].get(name).is_some())
            }
            other => panic!("this keyword is not checked: {other:?}"),
        };
        if !holds {
            return Err(format!("{keyword} {rule} does not hold for {value}"));
        }
    }
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten()
    {
        value.get(name).map_or(Ok(()), |member| is_valid(schema, member))?;
    }
    Ok(())
}
