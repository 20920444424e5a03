//! Stable hashes for names: FNV-1a, written in the alphabet upstream uses so that no words arise.

use serde::Serialize;

/// Consonants and digits without the ones that read as vowels.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a, 32 bits.
pub fn fnv32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// FNV-1a, 64 bits.
pub fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Each character replaced by one of the safe alphabet.
pub fn safe(text: &str) -> String {
    text.bytes().map(|b| SAFE[usize::from(b) % SAFE.len()] as char).collect()
}

/// The hash of a pod template that names ReplicaSets and revisions: stable for equal content; `collisions` makes another.
pub fn template_hash(content: &impl Serialize, collisions: Option<i32>) -> String {
    // Trees of API types always serialize; their maps are ordered, so equal content gives equal bytes.
    let mut bytes = serde_json::to_vec(content).unwrap_or_default();
    if let Some(count) = collisions {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    safe(&fnv32(&bytes).to_string())
}

/// Five characters from a seed, as generated names end.
pub fn suffix(seed: &str) -> String {
    let mut left = fnv64(seed.as_bytes());
    // FNV's high bits are the better mixed ones.
    left ^= left >> 29;
    (0..5)
        .map(|_| {
            let at = left % SAFE.len() as u64;
            left /= SAFE.len() as u64;
            SAFE[at as usize] as char
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        assert_eq!(fnv32(b""), 0x811c_9dc5);
        assert_eq!(fnv32(b"foobar"), 0xbf9c_f968);
        assert_eq!(fnv64(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(template_hash(&"x", None), template_hash(&"x", None));
        assert_ne!(template_hash(&"x", None), template_hash(&"x", Some(1)));
        assert_ne!(suffix("a/0"), suffix("a/1"));
        assert_eq!(suffix("a").len(), 5);
    }
}
