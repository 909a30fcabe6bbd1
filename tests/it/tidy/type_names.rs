//! Rule: a type name is defined once in `src`, so that a reader who meets the name knows which type it is.
//!
//! Tests do not count: they may name their own fakes. Neither do associated types, whose names their trait determines;
//! they are indented aliases. An exception needs a line in `SHARED`.

use std::collections::BTreeMap;

use super::source::{Line, Source};

/// Names that may be defined more than once, each with what forces it.
const SHARED: &[(&str, &str)] = &[];

/// Complaints about type names that several sources, or one source twice, define.
pub fn defined_once(sources: &[Source]) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for source in sources {
        for (name, line) in types(source) {
            places.entry(name).or_default().push(format!("{}:{line}", source.path));
        }
    }
    let shared = |name: &str| SHARED.iter().any(|(known, _)| *known == name);
    let twice = places.iter().filter(|(name, places)| places.len() > 1 && !shared(name));
    let twice =
        twice.map(|(name, places)| format!("{name}: is defined more than once: {}", places.join(", ")));
    let unused = SHARED.iter().filter(|(name, _)| places.get(name).is_none_or(|places| places.len() < 2));
    twice.chain(unused.map(|(name, _)| format!("{name}: is in the table but not defined twice"))).collect()
}

/// The structs, enums, unions, traits and type aliases that a source defines outside its tests, each with its line.
fn types(source: &Source) -> Vec<(&str, usize)> {
    let code: Vec<&Line> = source.code.iter().filter(|line| !line.text.trim().is_empty()).collect();
    let is_attribute = |line: &Line| line.text.trim().starts_with("#[");
    let mut found = Vec::new();
    for (at, line) in code.iter().enumerate() {
        let attributes = code[..at].iter().rev().take_while(|line| is_attribute(line));
        let only_in_tests = line.test || attributes.clone().any(|line| line.text.trim() == "#[cfg(test)]");
        if let Some(name) = defined_type(&line.text).filter(|_| !only_in_tests) {
            found.push((name, line.number));
        }
    }
    found
}

/// The name of the type that a line of code begins to define.
fn defined_type(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    let is_indented = rest.len() < line.len();
    if let Some(public) = rest.strip_prefix("pub") {
        rest = match public.trim_start().strip_prefix('(') {
            Some(scope) => scope.split_once(')')?.1.trim_start(),
            None => public.trim_start(),
        };
    }
    let (keyword, name) = rest.split_once(' ')?;
    let is_type =
        ["struct", "enum", "union", "trait"].contains(&keyword) || (keyword == "type" && !is_indented);
    let name = name.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (is_type && name.starts_with(char::is_uppercase)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that are complained about in these files.
    #[track_caller]
    fn check(files: &[(&str, &str)], want: &[&str]) {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        let complaints = defined_once(&sources);
        let names = complaints.iter().map(|complaint| complaint.split(':').next().unwrap_or_default());
        assert_eq!(names.collect::<Vec<_>>(), want, "{complaints:?}");
    }

    #[test]
    fn a_type_name_that_is_defined_twice_is_found() {
        check(&[("src/a.rs", "struct A;"), ("src/b.rs", "pub enum A {}")], &["A"]);
        check(
            &[("src/a.rs", "pub(super) trait A {"), ("src/b.rs", "pub(in crate::b) type A<'a> = &'a B;")],
            &["A"],
        );
        check(&[("src/a.rs", "struct A;\nfn f() {\n    struct A;\n}\n")], &["A"]);
        check(&[("src/a.rs", "#[derive(Debug)]\nstruct A(u8);"), ("src/b.rs", "union A {")], &["A"]);
        let two = [("src/a.rs", "struct A;\nstruct B;"), ("src/b.rs", "struct B;\nstruct A;")];
        check(&two, &["A", "B"]);
        let sources = two.map(|(path, text)| Source::new(path, text));
        assert_eq!(defined_once(&sources)[0], "A: is defined more than once: src/a.rs:1, src/b.rs:2");
    }

    #[test]
    fn what_does_not_define_a_type_of_the_program_does_not_count() {
        check(&[("src/a.rs", "struct A;"), ("src/b.rs", "struct B;")], &[]);
        check(
            &[("src/a.rs", "struct A;"), ("src/b.rs", "use crate::a::A;\npub use crate::a::{A as C};")],
            &[],
        );
        check(&[("src/a.rs", "struct A;"), ("src/b.rs", "// struct A;\nlet x = \"struct A;\";")], &[]);
        check(&[("src/a.rs", "struct A;"), ("src/b.rs", "impl T for B {\n    type A = u8;\n}")], &[]);
        check(&[("src/a.rs", "struct A;"), ("src/b.rs", "#[cfg(test)]\nmod tests {\n    struct A;\n}")], &[]);
        check(&[("src/a.rs", "struct A;"), ("src/b.rs", "#[cfg(test)]\n#[derive(Debug)]\nenum A {}")], &[]);
        check(
            &[("src/a.rs", "struct A;"), ("src/b/tests.rs", "struct A;"), ("src/fake.rs", "struct A;")],
            &[],
        );
        check(
            &[("src/a.rs", "fn f(r: Type) -> type_a { }"), ("src/b.rs", "fn g(r: Type) -> type_a { }")],
            &[],
        );
    }
}
