//! Protobuf's wire format: varints, fields, length-delimited parts. Knows no schema.

use super::ProtobufError;

/// One field's value as it lies on the wire.
#[derive(Clone, Copy, Debug)]
pub enum WireValue<'b> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'b [u8]),
    Fixed32([u8; 4]),
}

impl<'b> WireValue<'b> {
    pub fn bytes(self) -> Result<&'b [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(ProtobufError::Malformed("wrong wireType")),
        }
    }

    pub fn text(self) -> Result<&'b str, ProtobufError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Malformed("invalid UTF-8 string"))
    }

    pub fn varint(self) -> Result<u64, ProtobufError> {
        match self {
            Self::Varint(v) => Ok(v),
            _ => Err(ProtobufError::Malformed("wrong wireType")),
        }
    }
}

/// Reads fields one after the other.
pub struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn take(&mut self, n: usize) -> Result<&'b [u8], ProtobufError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(ProtobufError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    pub fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte, rest @ ..] = self.rest else { return Err(ProtobufError::Truncated) };
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Malformed("integer overflow"))
    }

    /// The next field's number and value; `None` at the end. Groups, which nobody writes, are an error.
    pub fn field(&mut self) -> Result<Option<(u32, WireValue<'b>)>, ProtobufError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).ok().filter(|t| *t != 0).ok_or(ProtobufError::Malformed("illegal tag"))?;
        let value = match key & 7 {
            0 => WireValue::Varint(self.varint()?),
            1 => WireValue::Fixed64(self.take(8)?.try_into().map_err(|_| ProtobufError::Truncated)?),
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| ProtobufError::Malformed("negative length"))?;
                WireValue::Bytes(self.take(length)?)
            }
            5 => WireValue::Fixed32(self.take(4)?.try_into().map_err(|_| ProtobufError::Truncated)?),
            _ => return Err(ProtobufError::Malformed("illegal wireType")),
        };
        Ok(Some((tag, value)))
    }
}

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn key(out: &mut Vec<u8>, tag: u32, wire_type: u8) {
    varint(out, u64::from(tag) << 3 | u64::from(wire_type));
}

pub fn number(out: &mut Vec<u8>, tag: u32, value: u64) {
    key(out, tag, 0);
    varint(out, value);
}

pub fn bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    key(out, tag, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A length-delimited part whose length is known only after it is written.
pub fn message<T>(out: &mut Vec<u8>, tag: u32, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    key(out, tag, 2);
    let at = out.len();
    // Most parts are shorter than 128 bytes: one byte of length, moved aside only when it does not do.
    out.push(0);
    let result = write(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
        return result;
    }
    let mut prefix = Vec::with_capacity(10);
    varint(&mut prefix, length as u64);
    out.splice(at..=at, prefix);
    result
}
