//! Checks documents against their JSON Schemas. Every document that a command writes passes through here, if the tests wait
//! for it.

use clap::ValueEnum;
use ringtally::cli::schema;
use ringtally::document::Format;
use serde_json::{Map, Value};
use std::path::Path;
use std::process::{Command, Output};

/// Panics unless the documents that a command wrote, if there are any, match their schemas.
pub fn check_documents(command: &Command, output: &Output) {
    let arguments: Vec<String> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let Some(at) = arguments.iter().position(|argument| argument == "--json") else { return };
    let place = arguments.get(at + 1).map(String::as_str);
    let written = match place {
        // A device such as /dev/full can be read without end.
        Some(path) if path != "-" && arguments[0] != "doctor" => {
            Path::new(path).is_file().then(|| std::fs::read(path).ok()).flatten()
        }
        _ => Some(output.stdout.clone()),
    };
    // If there is no document, the command has failed before it wrote one, or its file is a device.
    let Some(document) = written.and_then(|text| serde_json::from_slice(&text).ok()) else {
        return;
    };
    if let Err(why) = check(&document) {
        panic!("{arguments:?}: {why}");
    }
}

/// Checks a document against the schema of the format that it names.
pub fn check(document: &Value) -> Result<(), String> {
    let format = document.get("format").and_then(Value::as_str).ok_or("it names no format")?;
    let known = Format::value_variants().iter().find(|known| known.text() == format);
    let schema = schema(*known.ok_or(format!("there is no format {format}"))?).to_value();
    Schema { root: &schema }.check(&schema, document, "")
}

/// A schema with the keywords that this program uses. Any other keyword is refused, and so is a key that the schema does
/// not name.
struct Schema<'a> {
    root: &'a Value,
}

impl<'a> Schema<'a> {
    fn check(&self, schema: &'a Value, value: &Value, path: &str) -> Result<(), String> {
        let Some(words) = schema.as_object() else {
            return if schema == true { Ok(()) } else { Err(format!("{path} may not be there")) };
        };
        for (word, told) in words {
            let is_valid = match word.as_str() {
                "type" => types(told).any(|name| is_of_type(value, name)),
                "const" => told == value,
                "enum" => told.as_array().unwrap().contains(value),
                "minimum" => value.as_f64().is_none_or(|number| number >= told.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|number| number <= told.as_f64().unwrap()),
                "minItems" => items(value).is_none_or(|n| n.len() as u64 >= told.as_u64().unwrap()),
                "maxItems" => items(value).is_none_or(|n| n.len() as u64 <= told.as_u64().unwrap()),
                "oneOf" => {
                    let fits = |one: &&Value| self.check(one, value, path).is_ok();
                    told.as_array().unwrap().iter().filter(fits).count() == 1
                }
                "anyOf" => {
                    told.as_array().unwrap().iter().any(|one| self.check(one, value, path).is_ok())
                }
                "required" => value.as_object().is_none_or(|members| {
                    told.as_array()
                        .unwrap()
                        .iter()
                        .all(|key| members.contains_key(key.as_str().unwrap()))
                }),
                "$ref" => {
                    let target = self.root.pointer(&told.as_str().unwrap()[1..]).unwrap();
                    self.check(target, value, path)?;
                    true
                }
                "items" => {
                    for (index, item) in items(value).into_iter().flatten().enumerate() {
                        self.check(told, item, &format!("{path}/{index}"))?;
                    }
                    true
                }
                "properties" | "patternProperties" | "additionalProperties" => {
                    self.check_members(words, value, path)?;
                    true
                }
                "$schema" | "$defs" | "title" | "description" | "format" | "default" => true,
                other => panic!("{path}: this check does not know the keyword {other}"),
            };
            if !is_valid {
                return Err(format!("{path} is {value}, which {word} {told} does not allow"));
            }
        }
        Ok(())
    }

    fn check_members(
        &self,
        words: &'a Map<String, Value>,
        value: &Value,
        path: &str,
    ) -> Result<(), String> {
        let named = words.get("properties").and_then(Value::as_object);
        let others = words.get("additionalProperties").filter(|others| **others != false);
        let numbers = words.get("patternProperties").and_then(|patterns| patterns.get(r"^\d+$"));
        for (key, member) in value.as_object().into_iter().flatten() {
            let path = format!("{path}/{key}");
            let is_number = key.bytes().all(|byte| byte.is_ascii_digit());
            let schema = named.and_then(|named| named.get(key));
            let schema = schema.or(numbers.filter(|_| is_number)).or(others);
            self.check(schema.ok_or(format!("{path} is not in the schema"))?, member, &path)?;
        }
        Ok(())
    }
}

fn items(value: &Value) -> Option<&Vec<Value>> {
    value.as_array()
}

fn types(told: &Value) -> impl Iterator<Item = &str> {
    let (one, several) = (told.as_str(), told.as_array());
    one.into_iter().chain(several.into_iter().flatten().filter_map(Value::as_str))
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}
