//! The `whrelay` binary.

fn main() -> std::process::ExitCode {
    whrelay::main()
}
