//! The guarantees of `docs/fuse-overlay.md`, each with the program that would break it. Names are the sentences.
