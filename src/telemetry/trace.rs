//! Where a call stands in the trace of its caller: W3C's trace context.

use std::fmt;

/// The header that carries it.
pub const HEADER: &str = "traceparent";

/// The span that a call is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace. Never zero.
    pub trace: TraceId,
    /// The caller's span in it. Never zero.
    pub span: u64,
    /// Whether the caller keeps the trace.
    pub sampled: bool,
}

/// The id of a trace, shown as W3C writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl TraceParent {
    /// Reads the header; `None` if it is not as <https://www.w3.org/TR/trace-context/> wants it: then the caller's
    /// trace cannot be known, and nothing else is wrong.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = hex(version, 2)?;
        // Later versions may have more parts, and this one has not.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace, span, flags) = (hex(trace, 32)?, hex(span, 16)?, hex(flags, 2)?);
        let span = u64::try_from(span).ok()?;
        (trace != 0 && span != 0).then_some(Self { trace: TraceId(trace), span, sampled: flags & 1 == 1 })
    }
}

/// A number of exactly so many lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_w3c_wants_it() {
        let trace = TraceId(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        let parent = |sampled| TraceParent { trace, span: 0xb7ad_6b71_6920_3331, sampled };
        for (header, expected) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some(parent(true))),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", Some(parent(false))),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more", Some(parent(true))),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", None),
            ("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", None),
            ("", None),
        ] {
            assert_eq!(TraceParent::parse(header), expected, "{header}");
        }
        assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
    }
}
