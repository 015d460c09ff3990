//! The modules of a crate do not depend on each other in a circle: each can be read, tested and moved with what is below
//! it alone.
//!
//! What is counted, for each library and each program of the workspace:
//! - A module is a file; a `mod name { … }` inside a file belongs to it. Tests are left out: items with `#[cfg(test)]`
//!   (alone or as a part of `all(…)`), and files named `tests.rs` or `*_tests.rs`.
//! - A file depends on another if it names one of its items: in a `use`, in any other path of the code, or in the tokens
//!   of a macro's call. Documentation, attributes and visibilities (`pub(super)`) do not count.
//! - A file of nothing but `mod` and `use` items only declares and re-exports. It depends on nothing, and a path through
//!   it is a path to the file that defines the item. A parent with code of its own counts as any other file: one that
//!   uses its children and is used by them is a circle.
//! - Not seen: methods and traits of another file that no path names, and paths in strings (`#[serde(with = "…")]`).

#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Lines listed for each pair of files.
const LINES_SHOWN_MAX: usize = 5;

#[test]
fn no_crate_has_a_circle_of_modules() {
    let roots = roots();
    assert!(roots.len() >= 4, "the workspace has more crates than {roots:?}");
    let mut problems = String::new();
    for (name, root) in &roots {
        for circle in Crate::read(root).circles() {
            circle.describe(name, &mut problems);
        }
    }
    assert!(
        problems.is_empty(),
        "Some modules depend on each other in a circle. Move what both sides need to a module below them, or to the \
         side that it belongs to; the head of tests/tests/modules.rs says what is counted.\n{problems}"
    );
}

/// The name and root file of each library and program of the workspace.
fn roots() -> Vec<(String, PathBuf)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let array = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let mut roots = Vec::new();
    for package in array(&metadata["packages"]) {
        for target in array(&package["targets"]) {
            let is_kind = |wanted: &str| array(&target["kind"]).iter().any(|kind| kind == wanted);
            if is_kind("lib") || is_kind("bin") || is_kind("proc-macro") {
                let text = |value: &serde_json::Value| value.as_str().expect("cargo metadata has names").to_owned();
                roots.push((text(&target["name"]), PathBuf::from(text(&target["src_path"]))));
            }
        }
    }
    roots
}

type ScopeId = usize;
type FileId = usize;

/// A crate's files and their items.
#[derive(Default)]
struct Crate {
    files: Vec<SourceFile>,
    /// The first is the crate's root.
    scopes: Vec<Scope>,
}

struct SourceFile {
    path: PathBuf,
    /// Whether it only declares and re-exports.
    is_index: bool,
    /// Paths named in it: the scope, the line, the segments.
    named: Vec<(ScopeId, usize, Vec<String>)>,
}

/// A module, in a file of its own or inline.
struct Scope {
    file: FileId,
    parent: Option<ScopeId>,
    children: BTreeMap<String, ScopeId>,
    items: BTreeSet<String>,
    /// Names that a `use` brings in, and what they stand for.
    imports: Vec<(String, Vec<String>)>,
    /// Modules of which everything is brought in.
    globs: Vec<Vec<String>>,
}

/// What a path leads to.
#[derive(Clone, Copy)]
enum Target {
    Module(ScopeId),
    /// An item defined in this file.
    Item(FileId),
}

struct Edge {
    from: PathBuf,
    to: PathBuf,
    lines: Vec<(usize, String)>,
}

struct Circle {
    modules: Vec<PathBuf>,
    edges: Vec<Edge>,
}

impl Circle {
    fn describe(&self, crate_name: &str, problems: &mut String) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository is above its tests");
        let in_repository = |file: &Path| file.strip_prefix(repository).unwrap_or(file).display().to_string();
        let _ = writeln!(problems, "\n{crate_name}: {} modules in a circle", self.modules.len());
        for edge in &self.edges {
            let from = in_repository(&edge.from);
            let _ = writeln!(problems, "  {from} uses {}", in_repository(&edge.to));
            // The imports, if there are any; what they bring in is then named often.
            let is_anchored = |path: &str| path.starts_with("crate::") || path.starts_with("super::");
            let any = edge.lines.iter().any(|(_, path)| is_anchored(path));
            let shown = edge.lines.iter().filter(|(_, path)| !any || is_anchored(path));
            for (line, path) in shown.take(LINES_SHOWN_MAX) {
                let _ = writeln!(problems, "    {from}:{line}: {path}");
            }
        }
    }
}

/// Names can import each other; a real chain is short.
const IMPORTS_MAX: usize = 16;

impl Crate {
    fn read(root: &Path) -> Self {
        let mut this = Self::default();
        this.read_file(root, true, None);
        this
    }

    /// Reads a file and the files of its modules. `owns_folder` is true for a crate's root and a `mod.rs`: their modules
    /// are beside them.
    fn read_file(&mut self, path: &Path, owns_folder: bool, parent: Option<ScopeId>) -> ScopeId {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = self.files.len();
        let is_index = parsed.items.iter().all(|item| is_test(item) || is_declaration(item));
        self.files.push(SourceFile { path: path.to_owned(), is_index, named: Vec::new() });
        let folder = path.parent().expect("a file is in a folder");
        let below = if owns_folder { folder.to_owned() } else { folder.join(path.file_stem().expect("a name")) };
        self.read_scope(file, parent, &parsed.items, folder, &below)
    }

    fn read_scope(
        &mut self,
        file: FileId,
        parent: Option<ScopeId>,
        items: &[syn::Item],
        folder: &Path,
        below: &Path,
    ) -> ScopeId {
        let id = self.scopes.len();
        self.scopes.push(Scope {
            file,
            parent,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            imports: Vec::new(),
            globs: Vec::new(),
        });
        for item in items.iter().filter(|item| !is_test(item)) {
            if let syn::Item::Mod(module) = item {
                let name = module.ident.to_string();
                let child = if let Some((_, items)) = &module.content {
                    Some(self.read_scope(file, Some(id), items, folder, &below.join(&name)))
                } else {
                    module_file(module, &name, folder, below)
                        .map(|(path, owns_folder)| self.read_file(&path, owns_folder, Some(id)))
                };
                if let Some(child) = child {
                    self.scopes[id].children.insert(name, child);
                }
                continue;
            }
            if let Some(name) = item_name(item) {
                self.scopes[id].items.insert(name);
            }
            let mut names = Names::default();
            names.visit_item(item);
            let Names { imports, globs, named } = names;
            self.scopes[id].imports.extend(imports);
            self.scopes[id].globs.extend(globs);
            self.files[file].named.extend(named.into_iter().map(|(line, path)| (id, line, path)));
        }
        id
    }

    /// What `path` means in the module `scope`; `None` for a name from outside the crate.
    fn resolve(&self, mut scope: ScopeId, path: &[String], imports_left: usize) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let anchored = ["crate", "self", "super"].contains(&first.as_str());
        let mut target = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(scope),
            "super" => Target::Module(self.scopes[scope].parent?),
            name => self.look_up(scope, name, imports_left)?,
        };
        while let (Target::Module(module), Some((name, after))) = (target, rest.split_first()) {
            scope = module;
            target = match name.as_str() {
                "super" => Target::Module(self.scopes[scope].parent?),
                "self" => target,
                name => match self.look_up(scope, name, imports_left) {
                    Some(found) => found,
                    // For example what a macro defines: it is of this module.
                    None if anchored => return Some(Target::Item(self.scopes[scope].file)),
                    None => return None,
                },
            };
            rest = after;
        }
        Some(target)
    }

    fn look_up(&self, scope: ScopeId, name: &str, imports_left: usize) -> Option<Target> {
        let module = &self.scopes[scope];
        if let Some(&child) = module.children.get(name) {
            return Some(Target::Module(child));
        }
        if module.items.contains(name) {
            return Some(Target::Item(module.file));
        }
        let imports_left = imports_left.checked_sub(1)?;
        let imported = module.imports.iter().filter(|(known, _)| known == name);
        imported.map(|(_, path)| path).find_map(|path| self.resolve(scope, path, imports_left)).or_else(|| {
            module.globs.iter().find_map(|path| match self.resolve(scope, path, imports_left)? {
                Target::Module(other) if other != scope => self.look_up(other, name, imports_left),
                _ => None,
            })
        })
    }

    /// Which file names items of which other file, and where.
    fn dependencies(&self) -> BTreeMap<(FileId, FileId), Vec<(usize, String)>> {
        let mut dependencies: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (from, file) in self.files.iter().enumerate().filter(|(_, file)| !file.is_index) {
            for (scope, line, path) in &file.named {
                let to = match self.resolve(*scope, path, IMPORTS_MAX) {
                    // A local variable may have the name of a module.
                    Some(Target::Module(_)) if path.len() == 1 => continue,
                    Some(Target::Module(module)) => self.scopes[module].file,
                    Some(Target::Item(file)) => file,
                    None => continue,
                };
                if to != from {
                    let lines = dependencies.entry((from, to)).or_default();
                    if lines.last().is_none_or(|(last, _)| last != line) {
                        lines.push((*line, path.join("::")));
                    }
                }
            }
        }
        dependencies
    }

    /// Sets of files of which each depends on each other one, directly or not.
    fn circles(&self) -> Vec<Circle> {
        let dependencies = self.dependencies();
        let reached_from = |start: FileId| {
            let (mut reached, mut next) = (BTreeSet::new(), vec![start]);
            while let Some(file) = next.pop() {
                let targets = dependencies.keys().filter(|(from, _)| *from == file).map(|(_, to)| *to);
                next.extend(targets.filter(|to| reached.insert(*to)));
            }
            reached
        };
        let reached: Vec<BTreeSet<FileId>> = (0..self.files.len()).map(reached_from).collect();
        let mut circles = Vec::new();
        let mut known: BTreeSet<FileId> = BTreeSet::new();
        for file in 0..self.files.len() {
            if !reached[file].contains(&file) || known.contains(&file) {
                continue;
            }
            let together: BTreeSet<FileId> =
                reached[file].iter().copied().filter(|other| reached[*other].contains(&file)).collect();
            known.extend(&together);
            let inside = dependencies.iter().filter(|((from, to), _)| together.contains(from) && together.contains(to));
            let path = |file: FileId| self.files[file].path.clone();
            let edges =
                inside.map(|((from, to), lines)| Edge { from: path(*from), to: path(*to), lines: lines.clone() });
            circles.push(Circle { modules: together.iter().copied().map(path).collect(), edges: edges.collect() });
        }
        circles
    }
}

/// The file of `mod name;`, and whether it is a `mod.rs`; `None` for tests.
fn module_file(module: &syn::ItemMod, name: &str, folder: &Path, below: &Path) -> Option<(PathBuf, bool)> {
    let path = module.attrs.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(syn::MetaNameValue { path, value: syn::Expr::Lit(literal), .. })
            if path.is_ident("path") =>
        {
            if let syn::Lit::Str(text) = &literal.lit {
                Some(folder.join(text.value()))
            } else {
                None
            }
        }
        _ => None,
    });
    let found = match path {
        Some(path) => (path, true),
        None if below.join(name).join("mod.rs").exists() => (below.join(name).join("mod.rs"), true),
        None => (below.join(format!("{name}.rs")), false),
    };
    let stem = found.0.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    (stem != "tests" && !stem.ends_with("_tests")).then_some(found)
}

fn is_declaration(item: &syn::Item) -> bool {
    match item {
        syn::Item::Use(_) | syn::Item::ExternCrate(_) => true,
        syn::Item::Mod(module) => module.content.is_none(),
        _ => false,
    }
}

fn is_test(item: &syn::Item) -> bool {
    let attributes = match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => return false,
    };
    has_cfg_test(attributes)
}

fn has_cfg_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => needs_test(list.tokens.clone()),
        _ => false,
    })
}

/// Whether a `cfg` holds only in tests: `test` or `all(…, test, …)`.
fn needs_test(tokens: TokenStream) -> bool {
    let mut in_all = false;
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => {
            in_all = ident == "all";
            ident == "test"
        }
        TokenTree::Group(group) => std::mem::take(&mut in_all) && needs_test(group.stream()),
        _ => false,
    })
}

fn item_name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// Collects the names and paths of one item.
#[derive(Default)]
struct Names {
    imports: Vec<(String, Vec<String>)>,
    globs: Vec<Vec<String>>,
    named: Vec<(usize, Vec<String>)>,
}

impl Names {
    fn add_use(&mut self, tree: &syn::UseTree, before: &[String]) {
        let extended = |ident: &syn::Ident| before.iter().cloned().chain([ident.to_string()]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(path) => self.add_use(&path.tree, &extended(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, before)),
            syn::UseTree::Name(name) if name.ident == "self" => self.add_import(before.last(), &name.ident, before),
            syn::UseTree::Name(name) => {
                self.add_import(Some(&name.ident.to_string()), &name.ident, &extended(&name.ident))
            }
            syn::UseTree::Rename(rename) if rename.ident == "self" => {
                self.add_import(Some(&rename.rename.to_string()), &rename.ident, before);
            }
            syn::UseTree::Rename(rename) => {
                self.add_import(Some(&rename.rename.to_string()), &rename.ident, &extended(&rename.ident));
            }
            syn::UseTree::Glob(glob) => {
                self.named.push((glob.star_token.spans[0].start().line, before.to_vec()));
                self.globs.push(before.to_vec());
            }
        }
    }

    fn add_import(&mut self, name: Option<&String>, at: &syn::Ident, path: &[String]) {
        self.named.push((at.span().start().line, path.to_vec()));
        // `use name;` is a name from outside the crate.
        self.imports.extend(name.filter(|_| path.len() > 1).map(|name| (name.clone(), path.to_vec())));
    }

    /// Paths among the tokens of a macro's call.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 || path.is_empty() => {
                    if path.is_empty() {
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() && colons < 2 => colons += 1,
                other => {
                    self.end_path(&mut path, line);
                    colons = 0;
                    match other {
                        TokenTree::Ident(ident) => {
                            line = ident.span().start().line;
                            path.push(ident.to_string());
                        }
                        TokenTree::Group(group) => self.add_tokens(group.stream()),
                        _ => {}
                    }
                }
            }
        }
        self.end_path(&mut path, line);
    }

    fn end_path(&mut self, path: &mut Vec<String>, line: usize) {
        let path = std::mem::take(path);
        if path.len() > 1 || path.first().is_some_and(|name| names_an_item(name)) {
            self.named.push((line, path));
        }
    }
}

/// A single lower-case word is more often a variable.
fn names_an_item(name: &str) -> bool {
    name.starts_with(|first: char| first.is_uppercase())
}

fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

fn line(path: &syn::Path) -> usize {
    path.segments.first().map_or(0, |first| first.ident.span().start().line)
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !has_cfg_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.add_use(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = segments(path);
        if path.leading_colon.is_none() && (segments.len() > 1 || names_an_item(&segments[0])) {
            self.named.push((line(path), segments));
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(function) = &*call.func
            && function.path.leading_colon.is_none()
        {
            self.named.push((line(&function.path), segments(&function.path)));
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.add_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// Writes a crate of these files and returns its circles, each as the names of its files.
fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
        fs::write(path, text).expect("a file can be written");
    }
    let circles = Crate::read(&folder.path().join("lib.rs")).circles();
    let name = |path: &PathBuf| path.strip_prefix(folder.path()).expect("it is in the folder").display().to_string();
    circles.iter().map(|circle| circle.modules.iter().map(name).collect()).collect()
}

#[test]
fn a_circle_is_found_however_a_module_names_the_other() {
    let root = ("lib.rs", "mod a; mod b;");
    let back = ("b.rs", "use crate::a::A; pub struct B(A); pub fn b() {}");
    let forth = [
        "use crate::b::B; pub struct A(B);",
        "use super::b::{self, B}; pub struct A(B);",
        "use crate::b as other; pub struct A; fn f() { other::b() }",
        "use crate::b::*; pub struct A; fn f() { b() }",
        "pub struct A; impl A { fn f() { crate::b::b() } }",
        "pub struct A; fn f(_: &super::b::B) {}",
        "pub struct A; fn f() { use crate::b::b; b() }",
        "pub struct A; fn f() { println!(\"{}\", [crate::b::b()]) }",
        "pub struct A; mod inner { fn f() { super::super::b::b() } }",
    ];
    for a in forth {
        assert_eq!(circles_of(&[root, ("a.rs", a), back]), [["a.rs", "b.rs"]], "{a}");
    }
}

#[test]
fn what_only_tests_or_documentation_name_is_no_circle() {
    let back = ("b.rs", "use crate::a::A; pub struct B(A);");
    let forth = [
        "/// See [`B`](crate::b::B).\npub struct A;",
        "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }",
        "pub struct A; #[cfg(all(test, unix))] fn f(_: crate::b::B) {}",
        "pub struct A; mod a_tests;",
        "pub struct A; #[cfg(test)] #[path = \"tests.rs\"] mod named_otherwise;",
        "pub struct A { pub(in crate::b) field: u8 }",
        "pub struct A; fn f(b: u8) -> u8 { b }",
    ];
    for a in forth {
        let tests = ("a/a_tests.rs", "use crate::b::B;");
        assert!(circles_of(&[("lib.rs", "mod a; pub mod b;"), ("a.rs", a), back, tests]).is_empty(), "{a}");
    }
    let not_only = "pub struct A; #[cfg(not(test))] fn f(_: crate::b::B) {}";
    assert_eq!(circles_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", not_only), back]).len(), 1);
}

#[test]
fn a_parent_is_part_of_a_circle_only_with_code_of_its_own() {
    let child = ("m/child.rs", "use super::Shared; pub struct Child(Shared);");
    let sibling = ("m/sibling.rs", "pub struct Shared;");
    let index = "mod child; mod sibling; pub use child::Child; pub use self::sibling::*;";
    let of_parent = |text| circles_of(&[("lib.rs", "pub mod m;"), ("m/mod.rs", text), child, sibling]);
    assert!(of_parent(index).is_empty());
    let with_code = "mod child; pub use child::Child; pub struct Shared;";
    assert_eq!(of_parent(with_code), [["m/mod.rs", "m/child.rs"]]);
    // The child uses what the index re-exports from a sibling, which uses the child.
    let circle =
        [("lib.rs", "pub mod m;"), ("m/mod.rs", index), child, (sibling.0, "use super::Child; pub struct Shared;")];
    assert_eq!(circles_of(&circle), [["m/child.rs", "m/sibling.rs"]]);
}
