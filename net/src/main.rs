//! The program `kelp-net`; everything is in the library's `cli`.

fn main() -> std::process::ExitCode {
    match kelp_net::cli::main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kelp-net: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
