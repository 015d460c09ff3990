//! timestamptz and jsonb in their binary format, without a library.

use bytes::{BufMut, BytesMut};
use postgres_types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use logweir_record::timestamp;

/// PostgreSQL's epoch, 2000-01-01T00:00:00Z, in microseconds since 1970.
pub(super) const EPOCH_US: i64 = 946_684_800_000_000;

/// Version number, the first byte of a binary jsonb value.
pub(super) const JSONB_VERSION: u8 = 1;

type Boxed = Box<dyn std::error::Error + Sync + Send>;

/// Microseconds since 1970 as a timestamptz, clamped to the years 1 to 9999.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) i64);

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        out.put_i64(timestamp::clamp(self.0) - EPOCH_US);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Boxed> {
        let raw: [u8; 8] = raw.try_into()?;
        Ok(Self(i64::from_be_bytes(raw).saturating_add(EPOCH_US)))
    }

    accepts!(TIMESTAMPTZ);
}

/// JSON text as a jsonb. Not validated here: the server reports what is wrong with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json<'a>(pub(super) &'a str);

impl ToSql for Json<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        out.put_u8(JSONB_VERSION);
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    accepts!(JSONB);
    to_sql_checked!();
}
