//! The two HTTP listeners: data (intake) and admin.
