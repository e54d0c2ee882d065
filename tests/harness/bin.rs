//! The `whrelay` binary, so that the tests of this package get it built.

fn main() -> std::process::ExitCode {
    whrelay::main()
}
