//! Numbers in as few bytes as they need: seven bits a byte, the lowest first, the high bit saying that more follow.

use super::FormatError;

/// Appends a number.
pub fn put(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a number that may be negative, so that small ones of either sign stay short.
pub fn put_signed(number: i64, out: &mut Vec<u8>) {
    put((number << 1 ^ number >> 63) as u64, out);
}

/// Reads fields one after another and never past the end.
pub struct Reader<'a> {
    rest: &'a [u8],
    document: &'static str,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte; `document` is what errors call the bytes.
    pub fn new(bytes: &'a [u8], document: &'static str) -> Self {
        Self { rest: bytes, document }
    }

    /// Returns whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Returns an error that names this document.
    pub fn nonsense(&self, problem: impl Into<String>) -> FormatError {
        FormatError::Nonsense { document: self.document, problem: problem.into() }
    }

    /// Reads one byte.
    pub fn byte(&mut self) -> Result<u8, FormatError> {
        Ok(self.bytes(1)?[0])
    }

    /// Reads `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        if len > self.rest.len() {
            return Err(FormatError::Truncated { part: self.document });
        }
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(bytes)
    }

    /// Reads a number.
    ///
    /// # Errors
    /// [`FormatError::Nonsense`] if it has more than 64 bits or is not in its shortest form.
    pub fn number(&mut self) -> Result<u64, FormatError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return Err(self.nonsense("a number that is not in its shortest form"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.nonsense("a number with more than 64 bits"))
    }

    /// Reads a number that may be negative.
    pub fn signed(&mut self) -> Result<i64, FormatError> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Reads a number that fits 32 bits.
    pub fn small(&mut self) -> Result<u32, FormatError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.nonsense(format!("{number} where a 32-bit number belongs")))
    }

    /// Reads a length and then that many bytes.
    pub fn counted(&mut self) -> Result<&'a [u8], FormatError> {
        let len = self.number()?;
        match usize::try_from(len) {
            Ok(len) => self.bytes(len),
            Err(_) => Err(FormatError::Truncated { part: self.document }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(number: u64, signed: i64) {
            let mut bytes = Vec::new();
            put(number, &mut bytes);
            put_signed(signed, &mut bytes);
            let mut reader = Reader::new(&bytes, "test");
            prop_assert_eq!(reader.number(), Ok(number));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes, "test");
            while reader.counted().is_ok() && !reader.is_empty() {}
        }
    }

    #[test]
    fn a_number_has_one_spelling() {
        assert!(Reader::new(&[0x80, 0x00], "test").number().is_err());
        assert!(Reader::new(&[0xFF; 10], "test").number().is_err());
        assert!(Reader::new(&[0xFF; 9], "test").number().is_err());
    }
}
