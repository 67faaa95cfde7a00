//! Imports run in one direction: the modules of a folder have no import cycle, and each crate uses
//! only the crates below it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::visit::{self, Visit};

use super::root;

/// The crates: folder, and the crates that each may use.
const CRATES: [(&str, &str, &[&str]); 4] = [
    ("proto", "common/proto/src", &[]),
    ("common", "common/src", &["proto"]),
    ("client", "client/src", &["proto", "common"]),
    ("server", "server/src", &["proto", "common"]),
];

type ModulePath = Vec<String>;

/// The modules that one file uses of its own crate, and the other crates of the project that it
/// uses.
#[derive(Default)]
struct Uses {
    module: ModulePath,
    /// How many inline modules the visitor is in.
    inline: Vec<String>,
    own: BTreeSet<ModulePath>,
    crates: BTreeSet<String>,
}

impl Uses {
    fn add(&mut self, path: &[String]) {
        let here = || self.module.iter().chain(&self.inline).cloned().collect::<ModulePath>();
        let Some(first) = path.first() else { return };
        let absolute = match first.as_str() {
            "crate" => path[1..].to_vec(),
            "self" => [here(), path[1..].to_vec()].concat(),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let mut to = here();
                to.truncate(to.len().saturating_sub(ups));
                to.extend_from_slice(&path[ups..]);
                to
            }
            other => {
                if CRATES.iter().any(|(name, ..)| *name == other) {
                    self.crates.insert(other.to_owned());
                }
                return;
            }
        };
        self.own.insert(absolute);
    }

    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(name) => self.add(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.tree(before, tree));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if parts.len() > 1 {
            self.add(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // Imports in tests do not count.
        if item.content.is_some() && item.ident != "tests" {
            self.inline.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.inline.pop();
        }
    }
}

/// The source files in a folder and below, without tests of one module.
pub(super) fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// What each module of a crate uses.
fn read(folder: &str) -> Vec<Uses> {
    let dir = root().join(folder);
    let mut found = Vec::new();
    files(&dir, &mut found);
    let uses = found.into_iter().map(|file| {
        let text = fs::read_to_string(&file).expect("readable");
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let path = file.strip_prefix(&dir).expect("below it").with_extension("");
        let module: ModulePath = path.iter().map(|part| part.to_string_lossy().into()).collect();
        let module = if matches!(&*module[0], "lib" | "main") { Vec::new() } else { module };
        let mut uses = Uses { module, ..Uses::default() };
        uses.visit_file(&parsed);
        uses
    });
    uses.collect()
}

/// Which modules use which, among the children of `parent`.
type Siblings = BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>>;

fn siblings(uses: &[Uses]) -> Siblings {
    let modules: BTreeSet<_> = uses.iter().map(|uses| uses.module.clone()).collect();
    let mut all = Siblings::new();
    for file in uses {
        for used in &file.own {
            let common = file.module.iter().zip(used).take_while(|(a, b)| a == b).count();
            let (Some(from), Some(to)) = (file.module.get(common), used.get(common)) else {
                continue;
            };
            // Only modules count, not the items that a parent defines itself.
            if modules.contains(&used[..=common]) {
                let parent = all.entry(file.module[..common].to_vec()).or_default();
                parent.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    all
}

/// A path from `from` back to itself.
fn circle<'a>(
    graph: &'a BTreeMap<String, BTreeSet<String>>,
    from: &'a str,
    way: &mut Vec<&'a str>,
    seen: &mut BTreeSet<&'a str>,
) -> bool {
    let start = way.first().copied().unwrap_or(from);
    way.push(from);
    for to in graph.get(from).into_iter().flatten() {
        if to == start || (seen.insert(to) && circle(graph, to, way, seen)) {
            return true;
        }
    }
    way.pop();
    false
}

#[test]
fn imports_have_no_cycle() {
    let mut circles = Vec::new();
    for (name, folder, _) in CRATES {
        let all = siblings(&read(folder));
        assert!(!all.is_empty(), "{folder} was read");
        for (parent, graph) in &all {
            for module in graph.keys() {
                let mut way = Vec::new();
                if circle(graph, module, &mut way, &mut BTreeSet::new()) {
                    circles.push(format!("{name} {}: {}", parent.join("::"), way.join(" -> ")));
                }
            }
        }
    }
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

#[test]
fn a_crate_uses_only_the_crates_below_it() {
    for (name, folder, below) in CRATES {
        for file in read(folder) {
            let above: Vec<_> = file
                .crates
                .iter()
                .filter(|used| *used != name && !below.contains(&&***used))
                .collect();
            assert!(above.is_empty(), "{name}: {:?} uses {above:?}", file.module);
        }
    }
}

#[test]
fn the_crate_proto_depends_on_no_runtime_quic_or_socket_library() {
    let manifest = fs::read_to_string(root().join("common/proto/Cargo.toml")).expect("readable");
    let named = |crate_: &str| {
        manifest.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(crate_))
    };
    assert!(named("httparse"), "the manifest was read");
    for crate_ in ["tokio", "tokio-util", "quinn", "quinn-proto", "socket2", "rustix", "nix"] {
        assert!(!named(crate_), "{crate_}");
    }
    for file in read("common/proto/src") {
        let path = file.module.join("/");
        let text = fs::read_to_string(root().join(format!("common/proto/src/{path}.rs")));
        let Ok(text) = text else { continue };
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["std::net::Udp", "std::net::Tcp", "Instant::now", "SystemTime::now", "std::fs"]
        {
            assert!(!code.contains(word), "{path} names {word}");
        }
    }
}
