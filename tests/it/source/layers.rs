//! The layers that `src/lib.rs` describes: each module uses only modules below it in that list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// Modules that may use even fewer modules than those below them. `load` is an independent witness, `http`, `event`, and
/// `tally` are pure, and server and client share `uring`.
const ONLY: [(&str, &[&str]); 9] = [
    (
        "load",
        &["doctor", "document", "uring", "topology", "listening", "terminal", "log", "failure"],
    ),
    ("store", &["metrics", "tally", "uring", "log", "failure", "primitives"]),
    ("http", &[]),
    ("event", &[]),
    ("tally", &["primitives"]),
    ("uring", &[]),
    ("statistics", &[]),
    ("failure", &[]),
    ("primitives", &[]),
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the modules that the documentation of `lib.rs` lists, from the top.
fn listed(lib: &str) -> Vec<&str> {
    lib.lines()
        .filter_map(|line| line.strip_prefix("//! - "))
        .map(|entry| entry.split('`').nth(1).unwrap())
        .collect()
}

/// Returns the modules that `lib.rs` declares.
fn declared(lib: &str) -> BTreeSet<&str> {
    lib.lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect()
}

/// Returns the top-level modules that a source text names with `crate::`, outside of comments.
fn used(source: &str) -> BTreeSet<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    code.split("crate::").skip(1).flat_map(first_names).collect()
}

/// Returns the first name of each path after `crate::`: one path, or a list of paths in braces.
fn first_names(after: &str) -> Vec<String> {
    let name = |path: &str| -> String {
        path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(list) = after.strip_prefix('{') else { return vec![name(after)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            ',' | '}' if depth == 0 => {
                names.push(name(&list[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Returns every Rust file under a directory.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn names_are_found_in_paths_and_lists() {
    let source = "use crate::a::b;\n// crate::comment\nuse crate::{c, d::{e, f},\n  g::*};\n\
                  pub(in crate::h) fn x() { crate::i::j(); }";
    let names: Vec<String> = used(source).into_iter().collect();
    assert_eq!(names, ["a", "c", "d", "g", "h", "i"]);
}

/// Each of these modules uses only modules before it.
#[test]
fn the_events_of_a_load_are_below_its_parts() {
    const ORDER: [&str; 4] = ["workload", "part", "event_set", "parts"];
    let load = sources().join("load");
    for (index, module) in ORDER.iter().enumerate() {
        let paths = match load.join(module) {
            folder if folder.is_dir() => files(&folder),
            _ => vec![load.join(format!("{module}.rs"))],
        };
        for path in paths {
            let source = read_to_string(&path).unwrap();
            let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
            for above in &ORDER[index + 1..] {
                for way in [format!("super::{above}::"), format!("crate::load::{above}::")] {
                    assert!(!code.contains(&way), "{path:?} uses {above}, which is above it");
                }
            }
        }
    }
}

#[test]
fn a_store_in_a_file_knows_only_what_it_keeps() {
    let store = sources().join("store");
    let mut paths = files(&store.join("file"));
    paths.push(store.join("file.rs"));
    for path in paths {
        for name in used(&read_to_string(&path).unwrap()) {
            let is_allowed = ["failure", "tally"].contains(&name.as_str());
            assert!(is_allowed, "{path:?} uses crate::{name}, which it must not know");
        }
    }
}

#[test]
fn a_store_in_postgresql_knows_only_what_it_keeps_and_who_is_woken() {
    let store = sources().join("store");
    let mut paths = files(&store.join("postgres"));
    paths.push(store.join("postgres.rs"));
    for path in paths {
        for name in used(&read_to_string(&path).unwrap()) {
            let is_allowed = ["failure", "log", "store", "tally", "uring"].contains(&name.as_str());
            assert!(is_allowed, "{path:?} uses crate::{name}, which it must not know");
        }
    }
}

#[test]
fn the_list_has_every_module() {
    let lib = read_to_string(sources().join("lib.rs")).unwrap();
    let listed = listed(&lib);
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), declared(&lib));
    assert_eq!(listed.len(), declared(&lib).len(), "a module is listed twice");
}

#[test]
fn each_module_uses_only_modules_below_it() {
    let lib = read_to_string(sources().join("lib.rs")).unwrap();
    let listed = listed(&lib);
    let mut checked = BTreeSet::new();
    for path in files(&sources()) {
        let inside = path.strip_prefix(sources()).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["main", "lib", "build"].contains(&module) {
            continue;
        }
        let place = listed.iter().position(|name| *name == module).unwrap();
        let only = ONLY.iter().find(|(name, _)| *name == module).map(|(_, only)| *only);
        let source = read_to_string(&path).unwrap();
        for name in used(&source).iter().filter(|name| *name != module) {
            let found = listed.iter().position(|listed| listed == name);
            let found = found.unwrap_or_else(|| panic!("{path:?} uses crate::{name}: not listed"));
            assert!(found > place, "{path:?} uses crate::{name}, which is above {module}");
            let is_allowed = only.is_none_or(|only| only.contains(&name.as_str()));
            assert!(is_allowed, "{path:?} uses crate::{name}, which {module} must not know");
        }
        // In the file of a top-level module, `super` is the crate, and would bypass this check.
        let is_top = match inside.components().count() {
            1 => true,
            2 => inside.ends_with("mod.rs"),
            _ => false,
        };
        let has_way_around = source.lines().any(|line| line.starts_with("use super::"));
        assert!(!(is_top && has_way_around), "{path:?}: write crate:: for super::");
        checked.insert(module.to_owned());
    }
    assert_eq!(checked.len(), listed.len(), "{checked:?}");
}

/// Returns the path of a directory's module from the crate, followed by `::`.
fn path_from_crate(room: &Path) -> String {
    let inside = room.strip_prefix(sources()).unwrap();
    let names = inside.iter().map(|name| format!("{}::", name.to_str().unwrap()));
    format!("crate::{}", names.collect::<String>())
}

/// Returns the modules of one directory, each with its neighbors that it or anything in it names with `super::` or from
/// the crate.
fn neighbors(room: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut modules = BTreeMap::new();
    let from_crate = path_from_crate(room);
    for path in files(room) {
        let inside = path.strip_prefix(room).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        // The module of the directory itself may name its parts, and its parts may name its constants.
        if module == "mod" || inside.iter().any(|part| part.to_str().unwrap().starts_with("tests"))
        {
            continue;
        }
        // The number of steps from the items of this file up to the directory.
        let steps = inside.components().count() - usize::from(inside.ends_with("mod.rs"));
        let source = read_to_string(&path).unwrap();
        let shipped = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String = shipped
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let up = "super::".repeat(steps);
        let named = modules.entry(module.to_owned()).or_insert_with(BTreeSet::new);
        named.extend(code.split(&up).skip(1).flat_map(first_names));
        named.extend(code.split(&from_crate).skip(1).flat_map(first_names));
    }
    let root =
        [room.join("mod.rs"), room.with_extension("rs")].into_iter().find(|path| path.exists());
    let root = read_to_string(root.unwrap()).unwrap();
    // Test-only modules are not shipped.
    let is_shipped = |name: &str| {
        !root.contains(&format!("#[cfg(test)]\nmod {name};"))
            && !root.contains(&format!("#[cfg(test)]\npub(crate) mod {name};"))
    };
    modules.retain(|name, _| is_shipped(name));
    let known: BTreeSet<String> = modules.keys().cloned().collect();
    for (module, names) in &mut modules {
        names.retain(|name| known.contains(name) && name != module);
    }
    modules
}

/// Returns the modules that are left after those that use none of the others are removed, again and again.
fn circles(mut modules: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let uses_none =
            |(name, names): (&String, &BTreeSet<String>)| names.is_empty().then(|| name.clone());
        let free: Vec<String> = modules.iter().filter_map(uses_none).collect();
        if free.is_empty() {
            return modules;
        }
        for name in free {
            modules.remove(&name);
            for names in modules.values_mut() {
                names.remove(&name);
            }
        }
    }
}

/// Returns every directory with sources, from the top.
fn rooms(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rooms(&path));
        }
    }
    found
}

#[test]
fn the_modules_of_a_directory_use_each_other_in_one_direction() {
    for room in rooms(&sources()).into_iter().skip(1) {
        let circles = circles(neighbors(&room));
        assert!(circles.is_empty(), "{room:?}: {circles:?}");
    }
}

#[test]
fn a_circle_is_found_and_what_only_uses_one_is_left_with_it() {
    let uses = |name: &str, names: &[&str]| {
        (name.to_owned(), names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>())
    };
    let straight = [uses("a", &["b", "c"]), uses("b", &["c"]), uses("c", &[])];
    assert!(circles(straight.clone().into()).is_empty());
    let [a, b, _] = straight;
    let found = circles([a, b, uses("c", &["b"])].into());
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
}
