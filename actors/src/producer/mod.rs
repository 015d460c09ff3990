//! Stage producer: admission, decompression, lane choice.
