//! The fields of one struct: in the order of their names, and found by name in one step.
//!
//! Every write asks for each of its fields several times (pruning, defaults, ownership), so a search by comparing names
//! would be a good part of what a write costs.

use std::ops::Deref;

use super::Field;

/// Sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    list: Box<[Field]>,
    /// An open table: places in `list`, one more than they are; 0 where there is nothing. Its length is a power of two and
    /// at least twice the number of fields, so a search always ends.
    table: Box<[u16]>,
}

impl Fields {
    /// The field of a name.
    pub fn find(&self, name: &str) -> Option<&Field> {
        let mut slot = spread(name);
        loop {
            // An empty table has no slot at all.
            let place = *self.table.get(slot & self.table.len().wrapping_sub(1))?;
            let field = self.list.get(usize::from(place).checked_sub(1)?)?;
            if &*field.name == name {
                return Some(field);
            }
            slot += 1;
        }
    }
}

/// Tells the names of one struct apart by their length and three of their bytes; what it does not tell apart only costs a
/// comparison.
fn spread(name: &str) -> usize {
    let bytes = name.as_bytes();
    let [Some(first), Some(middle), Some(last)] = [bytes.first(), bytes.get(bytes.len() / 2), bytes.last()] else {
        return 0;
    };
    let mixed = u32::from_le_bytes([*first, *middle, *last, bytes.len() as u8]).wrapping_mul(0x9e37_79b1);
    (mixed >> 16) as usize
}

impl From<Vec<Field>> for Fields {
    fn from(mut list: Vec<Field>) -> Self {
        list.sort_by(|a, b| a.name.cmp(&b.name));
        // Far fewer fields have names of their own in anything that fits a request.
        list.truncate(usize::from(u16::MAX) / 2);
        let mut table = vec![0; if list.is_empty() { 0 } else { (2 * list.len()).next_power_of_two() }];
        for (at, field) in list.iter().enumerate() {
            let mut slot = spread(&field.name);
            while table[slot & (table.len() - 1)] != 0 {
                slot += 1;
            }
            let mask = table.len() - 1;
            table[slot & mask] = at as u16 + 1;
        }
        Self { list: list.into(), table: table.into() }
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        Vec::from_iter(fields).into()
    }
}

impl Deref for Fields {
    type Target = [Field];

    fn deref(&self) -> &[Field] {
        &self.list
    }
}

impl<'f> IntoIterator for &'f Fields {
    type Item = &'f Field;
    type IntoIter = std::slice::Iter<'f, Field>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_and_no_other() {
        let names = ["", "a", "ab", "ba", "aXb", "aYb", "podIP", "podIPs", "hostIP", "hostIPs"];
        let fields: Fields = names.iter().map(|name| Field { name: (*name).into(), ..Field::default() }).collect();
        assert!(fields.is_sorted_by(|a, b| a.name < b.name));
        for name in names {
            assert_eq!(fields.find(name).map(|f| &*f.name), Some(name));
        }
        assert!(["aZb", "x", "podIPx", "ä"].iter().all(|name| fields.find(name).is_none()));
        assert!(Fields::default().find("a").is_none());
    }
}
