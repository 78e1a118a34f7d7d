//! From text to a filter.

use prost_reflect::MessageDescriptor;

use super::{
    Node,
    test::{Op, Test},
};

/// Longest filter, in bytes.
const MAX_BYTES: usize = 4_096;
/// Most comparisons in one.
const MAX_TESTS: usize = 64;
/// How deep parentheses and negations may nest.
const MAX_DEPTH: usize = 16;

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    /// Characters before it.
    pub(super) at: usize,
    /// What is wrong.
    pub(super) what: String,
}

fn error<T>(at: usize, what: impl Into<String>) -> Result<T, Error> {
    Err(Error { at, what: what.into() })
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Minus,
    Op(Op),
    /// A name, a number or a word.
    Word(String),
    /// In quotes.
    Text(String),
}

/// The filter that a text means; none if it is empty.
pub(super) fn parse(text: &str, of: &MessageDescriptor) -> Result<Option<Node>, Error> {
    if text.len() > MAX_BYTES {
        return error(0, format!("is longer than {MAX_BYTES} bytes"));
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        end: text.chars().count(),
        tests: 0,
        of,
    };
    if parser.tokens.is_empty() {
        return Ok(None);
    }
    let root = parser.expression(0)?;
    match parser.peek() {
        None => Ok(Some(root)),
        Some(_) => error(parser.at(), "there is no `(` for this `)`"),
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Error> {
    let mut chars = text.chars().enumerate().peekable();
    let mut tokens: Vec<(usize, Token)> = Vec::new();
    while let Some((at, c)) = chars.next() {
        let mut equals = || chars.next_if(|(_, c)| *c == '=').is_some();
        let token = match c {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            '=' => Token::Op(Op::Equal),
            ':' => Token::Op(Op::Has),
            '<' if equals() => Token::Op(Op::AtMost),
            '<' => Token::Op(Op::Less),
            '>' if equals() => Token::Op(Op::AtLeast),
            '>' => Token::Op(Op::More),
            '!' if equals() => Token::Op(Op::NotEqual),
            '!' => return error(at, "`!` stands only in `!=`: use NOT"),
            '"' | '\'' => {
                let mut quoted = String::new();
                loop {
                    match chars.next() {
                        Some((_, end)) if end == c => break,
                        Some((_, '\\')) => match chars.next() {
                            Some((_, escaped @ ('"' | '\'' | '\\'))) => quoted.push(escaped),
                            _ => return error(at, "in quotes, `\\` stands only before a quote or another `\\`"),
                        },
                        Some((_, other)) => quoted.push(other),
                        None => return error(at, "the quote that begins here does not end"),
                    }
                }
                Token::Text(quoted)
            }
            // Before a value it is its sign.
            '-' if !matches!(tokens.last(), Some((_, Token::Op(_)))) => Token::Minus,
            c => {
                let mut word = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_whitespace() && !"()=:<>!\"'".contains(*c)) {
                    word.push(c);
                }
                // Times have colons.
                if matches!(tokens.last(), Some((_, Token::Op(_)))) {
                    while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_whitespace() && !"()<>!\"'".contains(*c)) {
                        word.push(c);
                    }
                }
                Token::Word(word)
            }
        };
        tokens.push((at, token));
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<(usize, Token)>,
    next: usize,
    end: usize,
    tests: usize,
    of: &'a MessageDescriptor,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(found)) if found == word);
        self.next += usize::from(found);
        found
    }

    fn expression(&mut self, depth: usize) -> Result<Node, Error> {
        let mut all = vec![self.factor(depth)?];
        while self.word("AND") || !matches!(self.peek(), None | Some(Token::Close)) {
            all.push(self.factor(depth)?);
        }
        Ok(one(all, Node::All))
    }

    fn factor(&mut self, depth: usize) -> Result<Node, Error> {
        let mut any = vec![self.term(depth)?];
        while self.word("OR") {
            any.push(self.term(depth)?);
        }
        Ok(one(any, Node::Any))
    }

    fn term(&mut self, depth: usize) -> Result<Node, Error> {
        if depth > MAX_DEPTH {
            return error(self.at(), format!("nests deeper than {MAX_DEPTH}"));
        }
        if self.word("NOT") {
            return Ok(Node::Not(Box::new(self.term(depth + 1)?)));
        }
        match self.peek() {
            Some(Token::Minus) => {
                self.next += 1;
                Ok(Node::Not(Box::new(self.term(depth + 1)?)))
            }
            Some(Token::Open) => {
                let open = self.at();
                self.next += 1;
                let inside = self.expression(depth + 1)?;
                if self.peek() != Some(&Token::Close) {
                    return error(open, "there is no `)` for this `(`");
                }
                self.next += 1;
                Ok(inside)
            }
            _ => self.restriction(),
        }
    }

    fn restriction(&mut self) -> Result<Node, Error> {
        let at = self.at();
        let field = match self.peek() {
            Some(Token::Word(field)) if !matches!(field.as_str(), "AND" | "OR") => field.clone(),
            _ => return error(at, "the name of a field is missing, as in `desired_state = RUNNING`"),
        };
        self.next += 1;
        let Some(Token::Op(op)) = self.peek().cloned() else {
            let what = format!("a comparison is missing behind {field:?}: one of = != < <= > >= :");
            return error(self.at(), what);
        };
        self.next += 1;
        let value_at = self.at();
        let (value, quoted) = match self.peek().cloned() {
            Some(Token::Word(value)) => (value, false),
            Some(Token::Text(value)) => (value, true),
            _ => return error(value_at, "a value is missing"),
        };
        self.next += 1;
        self.tests += 1;
        if self.tests > MAX_TESTS {
            return error(at, format!("has more than {MAX_TESTS} comparisons"));
        }
        let (path, last) = Test::path(self.of, &field).map_err(|what| Error { at, what })?;
        let test = Test::new(path, &last, op, &value, quoted).map_err(|what| Error { at: value_at, what })?;
        Ok(Node::Test(test))
    }
}

/// One of a kind needs no group.
fn one(mut nodes: Vec<Node>, group: fn(Vec<Node>) -> Node) -> Node {
    match nodes.pop() {
        Some(only) if nodes.is_empty() => only,
        last => {
            nodes.extend(last);
            group(nodes)
        }
    }
}
