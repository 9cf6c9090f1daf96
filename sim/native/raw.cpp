// The yardstick: the same model in a plain C++ loop, without cocotb, Python or VPI, under the same protocol.

#include <chrono>
#include <memory>

#include <sys/socket.h>

#include "Vtop.h"
#include "process.h"
#include "verilated.h"

namespace {

constexpr int RESET_CYCLES = 16;
constexpr uint64_t SCRIPT_CYCLES = 100000;

uint64_t now = 0;
std::unique_ptr<Vtop> top;

inline void cycle() {
    process_count_cycle();
    ++now;
    top->ap_clk = 1;
    top->eval();
    top->ap_clk = 0;
    top->eval();
}

bool script() {
    top->control_go = !top->control_go;
    cycle();
    for (uint64_t left = SCRIPT_CYCLES; top->control_busy && left > 0; --left) cycle();
    return !top->control_busy;
}

bool launch() {
    Control& control = *process.control;
    const auto start = std::chrono::steady_clock::now();
    const uint64_t first = process_cycle();
    top->control_go = !top->control_go;
    while (!top->irq && process_cycle() - first < control.max_cycles) cycle();
    const auto end = std::chrono::steady_clock::now();
    control.launch_cycles = process_cycle() - first;
    control.launch_ns = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count());
    for (uint64_t left = SCRIPT_CYCLES; top->control_busy && left > 0; --left) cycle();
    return top->irq;
}

bool answer(char value) { return send(process.socket, &value, 1, MSG_NOSIGNAL) == 1; }

}  // namespace

double sc_time_stamp() { return static_cast<double>(now); }

int main(int argc, char** argv) {
    process_open();
    Verilated::commandArgs(argc, argv);
    top.reset(new Vtop(""));
    top->ap_rst_n = 0;
    for (int left = RESET_CYCLES; left > 0; --left) cycle();
    top->ap_rst_n = 1;
    bool up = answer('R');
    char request;
    while (up && recv(process.socket, &request, 1, 0) == 1) {
        const bool done = request == 'L' ? launch() : script();
        probe_flush();
        up = answer(done ? 'D' : 'T');
    }
    top->final();
    return 0;
}
