//! Whether the kernel still holds what was put there, as nft lists it.
//!
//! Of every chain its rules are counted, and the marks in them: where they lead, what they look into, what they decide. Of
//! every map and set the elements are counted and summed up, each as a number made of its key and value. So a flush, a
//! removal, a rule or an element put in another's place are seen, whoever made them, and nothing of a listing is kept. What
//! rules match beside that is not read back, nor ranges, which nft may list otherwise than they were given.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::fragment::fnv1a;
use crate::map::{Entry, Map};
use crate::program::Ruleset;

/// What `nft -j list table` shows, as far as it is looked at.
#[derive(Debug, Deserialize)]
pub struct Listing {
    nftables: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Listed {
    Chain {
        name: String,
    },
    Rule {
        chain: String,
        expr: Marks,
    },
    #[serde(alias = "set")]
    Map {
        name: String,
        #[serde(default)]
        elem: Elements,
    },
    #[serde(untagged)]
    Other(IgnoredAny),
}

/// How many there are, and the sum of what each is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    count: usize,
    sum: u64,
}

impl Tally {
    fn add(&mut self, one: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(one);
    }
}

/// Words of a rule that decide something.
fn is_verdict(word: &str) -> bool {
    matches!(word, "accept" | "drop" | "reject" | "return" | "masquerade")
}

/// The sum of a rule's marks.
#[derive(Debug, Default)]
struct Marks(u64);

impl Marks {
    fn add(&mut self, word: &str) {
        self.0 = self.0.wrapping_add(fnv1a(word));
    }

    /// Of a rule as it was written.
    fn of(rule: &str) -> Marks {
        let mut out = Marks::default();
        let mut leads = false;
        for word in rule.split([' ', ',']).filter(|word| !word.is_empty()) {
            if leads || word.starts_with('@') || is_verdict(word) {
                out.add(word);
            }
            leads = matches!(word, "goto" | "jump");
        }
        out
    }
}

impl<'de> Deserialize<'de> for Marks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Marks, D::Error> {
        let mut out = Marks::default();
        let mut leads = false;
        Walk(&mut |token| match token {
            Token::Key(key) => {
                leads = key == "target";
                if is_verdict(key) {
                    out.add(key);
                }
            }
            Token::Text(text) => {
                if leads || text.starts_with('@') {
                    out.add(text);
                }
                leads = false;
            }
            Token::Number(_) => {}
        })
        .deserialize(deserializer)?;
        Ok(out)
    }
}

/// A protocol's number in place of its name: which of them nft shows depends on what this machine has names for.
fn numbered(word: &str) -> &str {
    match word {
        "tcp" => "6",
        "udp" => "17",
        "sctp" => "132",
        other => other,
    }
}

/// The elements of a set or map.
#[derive(Debug, Default)]
struct Elements(Tally);

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Elements, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Elements;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Elements, A::Error> {
                let (mut out, mut text) = (Tally::default(), String::new());
                loop {
                    text.clear();
                    let mut put = |token: Token<'_>| match token {
                        Token::Key("concat" | "target" | "elem" | "val") => {}
                        Token::Key(word) | Token::Text(word) => _ = write!(text, "{} ", numbered(word)),
                        Token::Number(number) => _ = write!(text, "{number} "),
                    };
                    if list.next_element_seed(Walk(&mut put))?.is_none() {
                        return Ok(Elements(out));
                    }
                    out.add(fnv1a(&text));
                }
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

enum Token<'a> {
    Key(&'a str),
    Text(&'a str),
    Number(u64),
}

/// Shows every name, text and number of a value, in order, and keeps none.
struct Walk<'a>(&'a mut dyn FnMut(Token<'_>));

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        (self.0)(Token::Text(text));
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        (self.0)(Token::Number(number));
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Walk(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            (self.0)(Token::Key(&key));
            map.next_value_seed(Walk(&mut *self.0))?;
        }
        Ok(())
    }
}

/// An element as a listing has it: its parts, protocols as numbers.
fn print(entry: &Entry<'_>, text: &mut String, out: &mut String) {
    text.clear();
    out.clear();
    // Writing to a String cannot fail.
    let _ = write!(text, "{entry}");
    for word in text.split(' ').filter(|word| !matches!(*word, "." | ":")) {
        let _ = write!(out, "{} ", numbered(word));
    }
}

/// Whether a listing has everything the ruleset put there.
pub fn intact(listing: &Listing, ruleset: &Ruleset) -> bool {
    let mut rules: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut elements: BTreeMap<&str, Tally> = BTreeMap::new();
    for listed in &listing.nftables {
        match listed {
            Listed::Chain { name } => _ = rules.entry(name).or_default(),
            Listed::Rule { chain, expr } => rules.entry(chain).or_default().add(expr.0),
            Listed::Map { name, elem } => _ = elements.insert(name, elem.0),
            Listed::Other(_) => {}
        }
    }
    let mut expected: BTreeMap<&str, Tally> = BTreeMap::new();
    for command in &*ruleset.base {
        let mut words = command.splitn(4, ' ').skip(1);
        match (words.next(), words.next(), words.next()) {
            (Some("chain"), Some(name), _) => _ = expected.entry(name).or_default(),
            (Some("rule"), Some(name), Some(rule)) => expected.entry(name).or_default().add(Marks::of(rule).0),
            _ => {}
        }
    }
    for (name, (rules, _)) in &ruleset.chains {
        let tally = expected.entry(name).or_default();
        rules.iter().for_each(|rule| tally.add(Marks::of(rule).0));
    }
    let mut counts: BTreeMap<Map, Tally> = BTreeMap::new();
    let (mut text, mut parts) = (String::new(), String::new());
    for (element, value) in ruleset.elements() {
        print(&Entry(&element, &value), &mut text, &mut parts);
        counts.entry(element.map()).or_default().add(fnv1a(&parts));
    }
    let same = |map: &Map, tally: &Tally| {
        let listed = elements.get(&*map.name());
        listed.is_some_and(|listed| listed.count == tally.count && (*map == Map::Sources || listed.sum == tally.sum))
    };
    expected.iter().all(|(name, tally)| rules.get(name) == Some(tally))
        && counts.iter().all(|(map, tally)| same(map, tally))
        && ruleset.sets.keys().all(|name| elements.contains_key(&**name))
}
