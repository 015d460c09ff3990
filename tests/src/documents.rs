//! Markdown documents as their tests read them: fenced blocks, inline code, links, and the commands of a shell block.

use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Line of its opening fence, from 1.
    pub line: usize,
    /// The word behind the opening fence; empty if the fence has none.
    pub language: String,
    /// Its content, without the indentation of its fence.
    pub text: String,
}

/// A parsed document.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// Its fenced blocks, in order.
    pub blocks: Vec<Block>,
    /// Its inline code, each with its line.
    pub inline: Vec<(usize, String)>,
    /// Targets of its links and images, each with its line.
    pub links: Vec<(usize, String)>,
    /// Anchors of its headings, as GitHub names them.
    pub anchors: Vec<String>,
}

impl Document {
    /// Parses Markdown.
    #[must_use]
    pub fn parse(markdown: &str) -> Self {
        let mut document = Self::default();
        let mut open: Option<(usize, Block)> = None;
        for (number, line) in (1..).zip(markdown.lines()) {
            let text = line.trim_start();
            let indent = line.len() - text.len();
            match &mut open {
                Some((_, block)) if text.starts_with("```") => {
                    document.blocks.push(std::mem::replace(
                        block,
                        Block { line: 0, language: String::new(), text: String::new() },
                    ));
                    open = None;
                }
                Some((fence, block)) => {
                    let stripped = line.get((*fence).min(indent)..).unwrap_or_default();
                    block.text.push_str(stripped);
                    block.text.push('\n');
                }
                None if text.starts_with("```") => {
                    let language = text.trim_matches('`').trim().to_owned();
                    open = Some((indent, Block { line: number, language, text: String::new() }));
                }
                None => document.prose(number, line),
            }
        }
        assert!(open.is_none(), "the block of line {} is never closed", open.map_or(0, |(_, block)| block.line));
        document
    }

    fn prose(&mut self, number: usize, line: &str) {
        if let Some(heading) = line.strip_prefix('#') {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let keep = |c: char| c.is_alphanumeric() || c == ' ' || c == '-' || c == '_';
            self.anchors.push(heading.chars().filter(|c| keep(*c)).collect::<String>().replace(' ', "-"));
        }
        for (nth, piece) in line.split('`').enumerate() {
            if nth % 2 == 1 {
                self.inline.push((number, piece.to_owned()));
            } else {
                for (at, _) in piece.match_indices("](") {
                    let target = piece[at + 2..].split([')', ' ']).next().unwrap_or_default();
                    self.links.push((number, target.to_owned()));
                }
            }
        }
    }
}

/// Number of fenced blocks by counting fences: what [`Document::parse`] must have found.
#[must_use]
pub fn fences(markdown: &str) -> usize {
    markdown.lines().filter(|line| line.trim_start().starts_with("```")).count() / 2
}

/// Every Markdown file below `root` except in build output and installed packages, in order of their paths.
#[must_use]
pub fn documents(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the repository").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if path.is_dir() && !is_link && !["target", ".git", "node_modules", "vendor"].contains(&&*name) {
                folders.push(path);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The simple commands of a shell text: words without quotes, redirections, assignments and comments.
#[must_use]
pub fn commands(text: &str) -> Vec<Vec<String>> {
    let text = without_here_documents(text).replace("\\\n", " ");
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(chars.next()),
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            (None, ';' | '&' | '|' | '(' | ')' | '\n')
                if !(c == '&' && word.as_deref().is_some_and(is_redirection)) =>
            {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word.take());
    commands.push(words);
    commands.into_iter().map(simple).filter(|words| !words.is_empty()).collect()
}

fn is_redirection(word: &str) -> bool {
    word.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(['<', '>'])
}

fn simple(words: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assigns = |word: &str| {
            word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        };
        if is_redirection(&word) {
            if word.ends_with(['<', '>']) {
                words.next();
            }
        } else if kept.is_empty() && (assigns(&word) || ["do", "then", "time", "sudo"].contains(&&*word)) {
        } else {
            kept.push(word);
        }
    }
    if kept.first().is_some_and(|word| ["for", "done", "export", "{", "}"].contains(&&**word)) {
        Vec::new()
    } else {
        kept
    }
}

fn without_here_documents(text: &str) -> String {
    let (mut kept, mut end) = (String::new(), None::<String>);
    for line in text.lines() {
        if let Some(word) = &end {
            if line.trim() == word {
                end = None;
            }
            continue;
        }
        if let Some((_, rest)) = line.split_once("<<") {
            let word: String =
                rest.trim_start_matches(['\'', '"', '-']).chars().take_while(|c| c.is_alphanumeric()).collect();
            end = Some(word).filter(|word| !word.is_empty());
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// Whether `line` is what `pattern` describes, where `…` stands for any text.
#[must_use]
pub fn describes(pattern: &str, line: &str) -> bool {
    let mut pieces = pattern.split('…');
    let Some(mut rest) = line.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
        last = Some(piece);
    }
    rest.is_empty() || last == Some("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_inline_code_links_and_anchors_are_found() {
        let text =
            "# A b: `c`\nsee [x](y.md#z) and `d e`\n1. item\n   ```sh\n   a\n     b\n   ```\n```toml\nk = 1\n```\n";
        let document = Document::parse(text);
        let block = |line, language: &str, text: &str| Block { line, language: language.into(), text: text.into() };
        assert_eq!(document.blocks, [block(4, "sh", "a\n  b\n"), block(8, "toml", "k = 1\n")]);
        assert_eq!(fences(text), 2);
        assert_eq!(document.links, [(2, "y.md#z".to_owned())]);
        assert_eq!(document.anchors, ["a-b-c"]);
        assert_eq!(document.inline, [(1, "c".to_owned()), (2, "d e".to_owned())]);
    }

    #[test]
    fn commands_are_split_as_a_shell_splits_them() {
        let text = "A=1 logweir run > log 2>&1 & # starts\n(cd x && ./y 'a b;c' \\\n --z \"d\") | cat <<'END'\nno command\nEND\n\
                    for n in 0 1; do k exec p-$n -- /logweir verify; done\n";
        let words = |text: &[&str]| text.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            commands(text),
            [
                words(&["logweir", "run"]),
                words(&["cd", "x"]),
                words(&["./y", "a b;c", "--z", "d"]),
                words(&["cat"]),
                words(&["k", "exec", "p-$n", "--", "/logweir", "verify"]),
            ]
        );
    }

    #[test]
    fn an_ellipsis_stands_for_any_text() {
        assert!(describes("a…c", "abc") && describes("a…", "abc") && describes("…c", "abc") && describes("abc", "abc"));
        assert!(!describes("a…b", "abc") && !describes("ab", "abc") && !describes("b…", "abc"));
        assert!(describes("{…,\"n\":…}", "{\"m\":1,\"n\":2}"));
    }
}
