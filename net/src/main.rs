//! The program `kelp-net`; everything is in the library's `cli`. It prints what that has to say,
//! and sets the exit code.

fn main() -> std::process::ExitCode {
    match kelp_net::cli::main(|note| eprintln!("kelp-net: {note}")) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kelp-net: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
