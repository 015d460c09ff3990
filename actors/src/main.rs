//! The `logweir` program; see `logweir --help`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    logweir::cli::main(std::env::args_os())
}
