//! User-mode networking for users without root: the library behind the program `kelp-net` and kelp's default network.
//! It knows nothing of kelp, of containers or of file systems.
