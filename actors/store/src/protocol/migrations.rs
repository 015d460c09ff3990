//! Migrations of the schema.

use crate::error::StoreError;

/// Keeps the class of a driver error inside `error`; anything else is a schema that this version does not understand.
pub(crate) fn migration_failure<E: std::error::Error + 'static>(
    error: &refinery::Error,
    classify: impl Fn(&str, &E) -> StoreError,
) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<E>() {
            return classify("migrating the schema", error);
        }
        cause = error.source();
    }
    StoreError::Systemic(format!("migrating the schema: {error}; the database may have been used by a newer version"))
}
