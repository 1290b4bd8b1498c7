//! A union file system for users without root: the library behind the program `fuse-overlay` and kelp's rung T2.
//! It knows nothing of kelp, of containers or of networking.
