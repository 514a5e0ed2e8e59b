//! Writ's programs that run in the kernel. `ARCHITECTURE.md` tells which program guards what.
#![no_std]
#![no_main]
// Inline assembly for BPF: `decide::add` needs an atomic instruction that the target's core library lacks.
#![feature(asm_experimental_arch)]

mod current;
mod decide;
mod found;
mod hooks;
mod instance;
mod maps;
mod offsets;
mod record;
mod sock;
mod text;
mod ticket;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// `bpf_loop`, `bpf_send_signal` and `bpf_probe_read_kernel_str` are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
