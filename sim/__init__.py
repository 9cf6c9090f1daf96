"""The RTL under cocotb and Verilator: build, memory model, server process, test benches."""
