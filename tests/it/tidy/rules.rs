//! Rules for the sources that the compiler does not check, each a function from text to complaints.
//!
//! A complaint names the file, the line and the reason. Each rule has a test with sources that violate it.

use super::source::{Source, mentions};

/// A longer file must be split. Its tests do not count.
const FILE_LINES_MAX: usize = 500;
/// A head says what the file owns, what it must not know, and its invariants. A short file or a test file needs only
/// one line.
const HEAD_LINES_MIN: usize = 3;
const HEAD_LINES_MAX: usize = 15;
const SHORT_FILE_LINES_MAX: usize = 100;
/// The head of the crate describes the architecture and may be longer.
const LONG_HEAD: &str = "src/lib.rs";
/// The files whose test code may sleep: the one that polls for a condition, and two where there is no condition to wait
/// for, namely the schedule of faults with the send rate, and the delays of a bad link.
const SLEEPERS: &[&str] =
    &["tests/it/support/eventually.rs", "tests/chaos/pace.rs", "tests/it/support/relay.rs"];

/// The entries at the top level besides dotfiles: the first page that a visitor sees.
const TOP_LEVEL: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "config.toml", "scripts", "src", "tests"];
/// The entries of `TOP_LEVEL` that must exist.
const TOP_LEVEL_REQUIRED: &[&str] = &["Cargo.lock", "Cargo.toml", "LICENSE", "src", "tests"];

/// Which other modules of the crate a module may mention. Imports run one way: main -> commands -> client -> api ->
/// chain; node -> client, serve, replica -> store -> chain; proxy -> client, serve, api. If several lines apply to a
/// file, it may mention the modules of all of them. A module without a line may mention no other module.
const IMPORTS: &[(&str, &[&str])] = &[
    // `fault` is compiled out except in builds that test the tests.
    ("src/chain", &["fault"]),
    ("src/store", &["chain", "error_text", "fault"]),
    ("src/replica", &["chain", "fault", "store"]),
    ("src/api", &["chain"]),
    ("src/client", &["api", "chain"]),
    ("src/serve", &["api", "chain"]),
    ("src/node", &["api", "chain", "client", "config", "replica", "serve", "store"]),
    ("src/proxy", &["api", "chain", "client", "config", "serve"]),
    ("src/client/fake", &["serve"]),
    ("src/cli", &["api"]),
    ("src/config", &["api", "cli", "output"]),
    ("src/output", &["api", "cli", "error_text"]),
    ("src/commands", &["api", "chain", "cli", "client", "config", "error_text", "output"]),
    // Two commands start a server, and one reads a store that is not in use.
    ("src/commands/serving", &["node", "proxy"]),
    ("src/commands/verify", &["store"]),
    ("src/commands/guide", &["guide"]),
];

const CLOCKS_AND_RANDOMNESS: &[&str] =
    &["SystemTime", "Instant::now", "Timestamp::now", "Zoned::now", "now_v7", "new_v4", "rand", "getrandom"];
const SYSTEM: &[&str] =
    &["tokio", "std::fs", "std::net", "std::env", "std::process", "std::thread", "rustix"];
const HTTP: &[&str] = &["axum", "hyper", "hyper_util", "tower"];

/// Other tokens that a module must not mention, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("src/chain", CLOCKS_AND_RANDOMNESS, "the core gets `now` and new ids as arguments"),
    ("src/chain", SYSTEM, "the core is values in, values out"),
    ("src/chain", HTTP, "the core knows no HTTP"),
    ("src/store", HTTP, "the store knows no HTTP"),
    ("src/store", &["tokio"], "the store blocks; its caller decides where"),
    ("src/replica", CLOCKS_AND_RANDOMNESS, "the simulation must be able to drive it from a seed"),
    ("src/replica", SYSTEM, "its caller has the threads and the sockets"),
    ("src/replica", HTTP, "it is driven by values"),
    ("src/api", HTTP, "the contract does not depend on the HTTP library of its server"),
    ("src/api", &["tokio", "std::fs"], "the contract is types and texts"),
    ("src/client", &["hyper", "hyper_util", "tower"], "the client is not a server"),
    ("src/proxy", &["chain::logs", "chain::vector", "chain::record"], "the proxy is stateless"),
    ("src/commands", HTTP, "commands are clients"),
    ("src/main", HTTP, "main parses, dispatches and exits"),
    (
        "src/main",
        &["chatchain::chain", "chatchain::store", "chatchain::node"],
        "main parses, dispatches and exits",
    ),
];

/// Tokens that only some modules may mention: the tokens, the modules, and whether unit tests elsewhere may use them
/// too.
const ONLY: &[(&[&str], &[&str], bool)] = &[
    (&["redb"], &["src/store"], false),
    (&["reqwest"], &["src/client"], false),
    (&["axum"], &["src/serve", "src/node", "src/proxy"], true),
    (&["toml"], &["src/config"], true),
    (&["indicatif", "comfy_table"], &["src/output"], false),
    (&["print!", "println!", "eprint!", "eprintln!", "stdout()", "stderr()"], &["src/output"], true),
];

/// Endings of type names that do not say what the type does.
const EMPTY_NAMES: &[&str] =
    &["Manager", "Helper", "Helpers", "Service", "Util", "Utils", "Impl", "Data", "Info"];

/// Words that no tracked file may contain: marks of unfinished work, and paths of a developer's machine. Each is
/// written in two parts because this file is tracked as well.
const WORDS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("<<<<", "<<< "),
    concat!(">>>>", ">>> "),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
];

/// The modules and files of the repository that the rules name. A rule that names none that exists checks nothing.
pub fn named_paths() -> Vec<String> {
    let imports = IMPORTS.iter().map(|(module, _)| (*module).to_owned());
    let forbidden = FORBIDDEN.iter().flat_map(|(module, tokens, _)| {
        let inner = tokens.iter().filter(|token| token.starts_with("chain::"));
        inner.map(|token| format!("src/{}", token.replace("::", "/"))).chain([(*module).to_owned()])
    });
    let only = ONLY.iter().flat_map(|(_, modules, _)| modules.iter().map(|module| (*module).to_owned()));
    let files = SLEEPERS.iter().chain([&LONG_HEAD]).map(|path| path.trim_end_matches(".rs").to_owned());
    imports.chain(forbidden).chain(only).chain(files).collect()
}

/// The complaints of all rules about one source file.
pub fn source(source: &Source) -> Vec<String> {
    [imports, forbidden, only, head, length, sleeps, names].iter().flat_map(|rule| rule(source)).collect()
}

fn imports(source: &Source) -> Vec<String> {
    let lines = IMPORTS.iter().filter(|(module, _)| source.is_within(module));
    let allowed: Vec<_> =
        lines.flat_map(|(_, modules)| modules.iter().copied()).chain([source.module()]).collect();
    let mut complaints = Vec::new();
    for line in source.code.iter().filter(|_| source.path.starts_with("src/")) {
        let mentioned = line.text.split("crate::").skip(1);
        let modules = mentioned.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next());
        for module in modules.flatten().filter(|module| !allowed.contains(module)) {
            complaints.push(format!("{}:{}: must not mention crate::{module}", source.path, line.number));
        }
    }
    complaints
}

fn forbidden(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (_, tokens, why) in FORBIDDEN.iter().filter(|(module, ..)| source.is_within(module)) {
        for line in &source.code {
            for token in tokens.iter().filter(|token| mentions(&line.text, token)) {
                complaints.push(format!("{}:{}: mentions {token}: {why}", source.path, line.number));
            }
        }
    }
    complaints
}

fn only(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (tokens, modules, tests_may) in ONLY {
        let allowed = modules.iter().any(|module| source.is_within(module));
        if allowed || !source.path.starts_with("src/") {
            continue;
        }
        for line in source.code.iter().filter(|line| !(line.test && *tests_may)) {
            for token in tokens.iter().filter(|token| mentions(&line.text, token)) {
                let modules = modules.join(", ");
                complaints
                    .push(format!("{}:{}: mentions {token}: only {modules} may", source.path, line.number));
            }
        }
    }
    complaints
}

fn head(source: &Source) -> Vec<String> {
    let lines = source.text.lines().take_while(|line| line.starts_with("//!")).count();
    let least = if source.lines_before_tests() > SHORT_FILE_LINES_MAX { HEAD_LINES_MIN } else { 1 };
    let most = if source.path == LONG_HEAD { usize::MAX } else { HEAD_LINES_MAX };
    let wrong =
        format!("{}: {lines} lines of //! at its head: {least} to {most} say what it owns", source.path);
    if (least..=most).contains(&lines) { vec![] } else { vec![wrong] }
}

fn length(source: &Source) -> Vec<String> {
    let lines = source.lines_before_tests();
    let wrong = format!("{}: {lines} lines besides its tests: the limit is {FILE_LINES_MAX}", source.path);
    if lines > FILE_LINES_MAX { vec![wrong] } else { vec![] }
}

fn sleeps(source: &Source) -> Vec<String> {
    if SLEEPERS.contains(&source.path.as_str()) {
        return vec![];
    }
    let sleep_calls = ["sleep", "sleep_until", "sleep_ms", "park_timeout"];
    let lines = source.code.iter().filter(|line| line.test);
    let found = lines.filter(|line| sleep_calls.iter().any(|token| mentions(&line.text, token)));
    found
        .map(|line| format!("{}:{}: a test sleeps: wait with `eventually`", source.path, line.number))
        .collect()
}

fn names(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let file = source.path.rsplit('/').next().unwrap_or_default();
    if ["utils.rs", "util.rs", "helpers.rs", "helper.rs", "misc.rs", "common.rs"].contains(&file) {
        complaints.push(format!("{}: name the file after what it owns", source.path));
    }
    for line in &source.code {
        // An indented alias is an associated type, whose name the trait determines.
        if line.text.starts_with("    type ") {
            continue;
        }
        let mut words = line.text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty());
        while let Some(word) = words.next() {
            if !["struct", "enum", "trait", "type"].contains(&word) {
                continue;
            }
            let name = words.next().unwrap_or_default();
            if EMPTY_NAMES.iter().any(|empty| name.ends_with(empty)) {
                complaints.push(format!("{}:{}: {name} does not say what it does", source.path, line.number));
            }
        }
    }
    complaints
}

/// Checks the visible entries at the top level.
pub fn top_level<'a>(entries: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let visible: Vec<_> = entries.into_iter().filter(|entry| !entry.starts_with('.')).collect();
    let extra = visible.iter().filter(|entry| !TOP_LEVEL.contains(entry));
    let missing = TOP_LEVEL_REQUIRED.iter().filter(|entry| !visible.contains(entry));
    let extra = extra.map(|entry| format!("{entry}: does not belong to the top level"));
    extra.chain(missing.map(|entry| format!("{entry}: is missing"))).collect()
}

/// Checks that the line of every dependency ends with a comment that says what it saves.
pub fn manifest(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut in_dependencies = false;
    for (line, number) in text.lines().zip(1..) {
        if let Some(section) = line.strip_prefix('[') {
            in_dependencies = section.contains("dependencies");
            if section.contains("dependencies.") {
                complaints
                    .push(format!("Cargo.toml:{number}: write a dependency as one line in its section"));
            }
        } else if in_dependencies
            && !line.trim().is_empty()
            && !line.starts_with('#')
            && comment(line).is_empty()
        {
            complaints.push(format!("Cargo.toml:{number}: does not say what it saves: {line}"));
        }
    }
    complaints
}

/// The text after the first `#` outside quotes.
fn comment(line: &str) -> &str {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return line[at + 1..].trim(),
            _ => {}
        }
    }
    ""
}

/// Checks a tracked file for forbidden words.
pub fn words(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        for word in WORDS.iter().filter(|word| mentions(line, word)) {
            complaints.push(format!("{path}:{number}: contains {word:?}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "//! One.\n//!\n//! Two.\n";

    /// Checks code in a file with a valid head: exactly one complaint that contains `want`, or none if `want` is empty.
    #[track_caller]
    fn check(path: &str, code: &str, want: &str) {
        expect(&source(&Source::new(path, &format!("{HEAD}{code}\n"))), want);
    }

    #[track_caller]
    fn expect(complaints: &[String], want: &str) {
        match complaints {
            [] => assert_eq!(want, "", "no complaint"),
            [one] => assert!(!want.is_empty() && one.contains(want), "{one}"),
            more => panic!("more than one complaint: {more:?}"),
        }
    }

    #[test]
    fn imports_run_one_way() {
        check(
            "src/chain/logs.rs",
            "use crate::store::Store;",
            "src/chain/logs.rs:4: must not mention crate::store",
        );
        check("src/store/mod.rs", "use crate::{api::Problem, chain};", "must not mention crate::api");
        check("src/api/mod.rs", "type Link = crate::client::Client;", "must not mention crate::client");
        check("src/client.rs", "use crate::proxy::Upstreams;", "must not mention crate::proxy");
        check("src/serve.rs", "use crate::client::Client;", "must not mention crate::client");
        check("src/node/http.rs", "use crate::proxy;", "must not mention crate::proxy");
        check("src/serve.rs", "use crate::config::NodeConfig;", "must not mention crate::config");
        check("src/proxy/run.rs", "use crate::store;", "must not mention crate::store");
        check("src/proxy/forward.rs", "use crate::node;", "must not mention crate::node");
        check("src/commands/list.rs", "crate::node::run()", "must not mention crate::node");
        check("src/commands/status.rs", "crate::store::Store::open()", "must not mention crate::store");
        check("src/output.rs", "use crate::client;", "must not mention crate::client");
        check("src/new.rs", "use crate::chain;", "must not mention crate::chain");

        check("src/node/mod.rs", "use crate::{api, chain, client, config, node::writer, serve, store};", "");
        check("src/proxy/run.rs", "use crate::{api, client, config, serve};", "");
        check("src/commands/serving.rs", "crate::node::run(config).await", "");
        check("src/chain/logs.rs", "pub(crate) use crate::chain::clock; // not crate::store", "");
    }

    #[test]
    fn layers_do_not_mention_what_they_must_not() {
        check("src/chain/logs.rs", "use tokio::sync::watch;", "src/chain/logs.rs:4: mentions tokio");
        check("src/chain/logs.rs", "use std::{fmt, fs};", "mentions std::fs");
        check("src/chain/logs.rs", "let t = std::time::Instant::now();", "mentions Instant::now");
        check("src/chain/logs.rs", "fn f(t: SystemTime) {}", "mentions SystemTime");
        check("src/chain/logs.rs", "let id = Uuid::now_v7();", "mentions now_v7");
        check("src/chain/logs.rs", "let id = Uuid::new_v4();", "mentions new_v4");
        check("src/chain/logs.rs", "let x = rand::random();", "mentions rand");
        check("src/chain/logs.rs", "use tower::Layer;", "the core knows no HTTP");
        check("src/store/log/mod.rs", "use tokio::sync::watch;", "the store blocks");
        check("src/store/log/mod.rs", "use hyper::body;", "mentions hyper");
        check("src/api/mod.rs", "use hyper::StatusCode;", "mentions hyper");
        check("src/api/mod.rs", "async fn f() { tokio::task::yield_now().await }", "mentions tokio");
        check("src/client.rs", "use tower::Service;", "the client is not a server");
        check("src/proxy/run.rs", "use crate::chain::logs::Logs;", "stateless");
        check("src/commands/send.rs", "use hyper::Method;", "commands are clients");
        check("src/main.rs", "use chatchain::store::Store;", "main parses");

        check("src/chain/logs.rs", "let operand = \"rand\"; // unlike tokio", "");
        check("src/api/mod.rs", "use std::time::Instant; Instant::now()", "");
        check("tests/it/api.rs", "use std::fs; use redb::Database;", "");
    }

    #[test]
    fn each_outside_library_has_its_modules() {
        check(
            "src/node/writer/mod.rs",
            "use redb::Database;",
            "src/node/writer/mod.rs:4: mentions redb: only src/store may",
        );
        check("src/proxy/forward.rs", "let x: reqwest::Client;", "only src/client may");
        check("src/config.rs", "use axum::Router;", "mentions axum");
        check("src/store/mod.rs", "let x = toml::from_str(s);", "mentions toml");
        check("src/commands/list.rs", "let t = comfy_table::Table::new();", "only src/output may");
        check("src/node/a.rs", "#[cfg(test)]\nmod tests {\n    use redb::Database;\n}", "src/node/a.rs:6");

        check("src/store/log/mod.rs", "use {redb::Database, crate::chain::record};", "");
        check("src/proxy/forward.rs", "use axum::body::Body;", "");
    }

    #[test]
    fn one_file_prints() {
        check("src/commands/list.rs", "println!();", "mentions println!");
        check("src/commands/list.rs", "print!();", "mentions print!");
        check("src/node/run.rs", "eprintln!();", "mentions eprintln!");
        check("src/node/run.rs", "eprint!();", "mentions eprint!");
        check("src/node/run.rs", "writeln!(std::io::stdout(), \"x\");", "mentions stdout()");
        check("src/main.rs", "stderr().flush()", "mentions stderr()");
        check("src/output.rs", "println!();", "");
        check("src/node/run.rs", "#[cfg(test)]\nmod tests {\n    println!();\n}", "");
    }

    #[test]
    fn every_file_has_a_head() {
        let check = |path, text: &str, want| expect(&source(&Source::new(path, text)), want);
        check("src/a.rs", "use b;\n", "src/a.rs: 0 lines of //!");
        check("tests/it/a.rs", "\n//! One.\n", "0 lines of //!");
        check("src/a.rs", "//! One.\n", "");
        let long = "let x = 1;\n".repeat(SHORT_FILE_LINES_MAX);
        check("src/a.rs", &format!("//! One.\n//! Two.\n{long}"), "2 lines of //! at its head: 3 to 15 say");
        check("src/a.rs", &format!("//! One.\n//!\n//! Two.\n{long}"), "");
        check("tests/it/a.rs", &format!("//! One.\n{long}"), "");
        check("src/a.rs", &"//! x\n".repeat(HEAD_LINES_MAX), "");
        check("src/a.rs", &"//! x\n".repeat(HEAD_LINES_MAX + 1), "16 lines of //!");
        check("src/lib.rs", &"//! x\n".repeat(50), "");
    }

    #[test]
    fn files_stay_short() {
        let lines = |count| "let x = 1;\n".repeat(count);
        check("src/a.rs", &lines(FILE_LINES_MAX - 4), "");
        check("src/a.rs", &lines(FILE_LINES_MAX - 3), "501 lines besides its tests");
        check("src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{}}}", lines(600)), "");
        check("tests/it/a.rs", &lines(600), "");
    }

    #[test]
    fn tests_do_not_sleep() {
        check("tests/it/api.rs", "std::thread::sleep(SECOND);", "tests/it/api.rs:4: a test sleeps");
        check("tests/sim/main.rs", "use tokio::time::{self, sleep};", "a test sleeps");
        check("tests/it/api.rs", "thread::park_timeout(SECOND);", "a test sleeps");
        check(
            "src/a.rs",
            "#[cfg(test)]\nmod tests {\n    sleep(SECOND).await\n}",
            "src/a.rs:6: a test sleeps",
        );
        check("src/a.rs", "tokio::time::sleep(pause).await", "");
        check("tests/chaos/client.rs", "std::thread::sleep(SECOND);", "a test sleeps");
        check("tests/chaos/pace.rs", "std::thread::sleep(SECOND);", "");
        check("tests/it/support/eventually.rs", "std::thread::sleep(SECOND);", "");
        check("tests/it/api.rs", "Command::new(\"sleep\");", "");
    }

    #[test]
    fn names_say_what_things_do() {
        check("src/a.rs", "pub struct PeerManager;", "src/a.rs:4: PeerManager does not say");
        check("src/a.rs", "enum NodeInfo<T> {", "NodeInfo does not say");
        check("src/utils.rs", "", "name the file after what it owns");
        check("src/a.rs", "type PeerData = u8;", "PeerData does not say");
        check("src/a.rs", "struct Manages;\nfn info() {}", "");
        check("src/a.rs", "impl Body for A {\n    type Data = Bytes;\n}", "");
    }

    #[test]
    fn the_top_level_holds_what_it_should() {
        let all = || TOP_LEVEL.iter().copied().chain([".github"]);
        expect(&top_level(all()), "");
        expect(&top_level(all().chain(["notes.md"])), "notes.md: does not belong");
        expect(&top_level(all().filter(|entry| *entry != "Cargo.lock")), "Cargo.lock: is missing");
        expect(&top_level(all().filter(|entry| *entry != "config.toml")), "");
    }

    #[test]
    fn dependencies_say_what_they_save() {
        expect(&manifest("[package]\nname = \"a\"\n[dependencies]\nb = \"1\" # saves c\n\n# note\n"), "");
        expect(&manifest("[dependencies]\nb = \"1\"\n"), "Cargo.toml:2: does not say what it saves: b");
        expect(&manifest("[dev-dependencies]\nb = \"1\" #\n"), "Cargo.toml:2");
        expect(&manifest("[dependencies]\nb = { git = \"x#y\" }\n"), "Cargo.toml:2");
        expect(&manifest("[target.'cfg(unix)'.dependencies]\nb = \"1\"\n"), "Cargo.toml:2");
        expect(&manifest("[dependencies.b]\n"), "Cargo.toml:1: write a dependency as one line");
    }

    #[test]
    fn forbidden_words_are_found() {
        for word in WORDS {
            expect(
                &words("a.md", &format!("fine\n{word}x y {word} z")),
                &format!("a.md:2: contains {word:?}"),
            );
        }
        expect(&words("a.md", "mktemp XXXXXX; a to-do; target/home"), "");
    }
}
