// The cocotb simulator's main: it owns the clock, and enters VPI only when cocotb has something to see.
//
// cocotb's own main calls every VPI callback at every time step, which costs most of the speed. Here clock edges are
// evaluated natively, and Python runs when a cocotb timer is due or a watched output changes. Simulated time is
// exact. What this gives up: callbacks on signals other than the watched ones fire only at those moments.

#include <cstdint>
#include <memory>

#include "Vtop.h"
#include "process.h"
#include "verilated.h"
#include "verilated_vpi.h"

#if VM_TRACE
#include "verilated_fst_c.h"
#endif

extern "C" void vlog_startup_routines_bootstrap(void);

namespace {

constexpr uint64_t HALF_PERIOD = 5000;  // ps
constexpr int RESET_EDGES = 32;

uint64_t now = 0;

class Simulator {
public:
    Simulator() : top_(new Vtop("")) {
        Verilated::fatalOnVpiError(false);
#if VM_TRACE
        Verilated::traceEverOn(true);
        if (process.waves) {
            waves_.reset(new VerilatedFstC);
            top_->trace(waves_.get(), 99);
            waves_->open(process.waves);
        }
#endif
    }

    ~Simulator() {
        top_->final();
#if VM_TRACE
        if (waves_) waves_->close();
#endif
    }

    void reset() {
        top_->ap_rst_n = 0;
        for (int edge = 0; edge < RESET_EDGES; ++edge) clock_edge();
        top_->ap_rst_n = 1;
    }

    // Everything Python may see or change at this moment, until nothing changes any more (as in cocotb's own main).
    void python() {
        do {
            do {
                top_->eval();
                VerilatedVpi::clearEvalNeeded();
                VerilatedVpi::doInertialPuts();
                settle();
            } while (VerilatedVpi::evalNeeded());
            VerilatedVpi::callCbs(cbReadWriteSynch);
            VerilatedVpi::doInertialPuts();
            settle();
        } while (VerilatedVpi::evalNeeded());
        VerilatedVpi::callCbs(cbReadOnlySynch);
        dump();
    }

    // Clock edges until a watched output changes or a cocotb timer is due.
    void clock() {
        const uint64_t deadline = VerilatedVpi::cbNextDeadline();
        const auto interrupt = top_->irq;
        const auto busy = top_->control_busy;
        while (edge_ <= deadline) {
            clock_edge();
            if (top_->irq != interrupt || top_->control_busy != busy || Verilated::gotFinish()) break;
        }
        if (edge_ > deadline) now = deadline;
        probe_flush();
        VerilatedVpi::callCbs(cbNextSimTime);
        settle();
        VerilatedVpi::callTimedCbs();
        settle();
    }

    static void settle() {
        while (VerilatedVpi::callValueCbs()) {
        }
    }

private:
    void clock_edge() {
        now = edge_;
        edge_ += HALF_PERIOD;
        top_->ap_clk = !top_->ap_clk;
        if (top_->ap_clk) process_count_cycle();
        top_->eval();
        dump();
    }

    void dump() {
#if VM_TRACE
        if (waves_) waves_->dump(now);
#endif
    }

    std::unique_ptr<Vtop> top_;
    uint64_t edge_ = 0;
#if VM_TRACE
    std::unique_ptr<VerilatedFstC> waves_;
#endif
};

}  // namespace

// Verilator asks for the simulated time through this name.
double sc_time_stamp() { return static_cast<double>(now); }

int main(int argc, char** argv) {
    process_open();
    Verilated::commandArgs(argc, argv);
    Simulator simulator;
    simulator.reset();
    vlog_startup_routines_bootstrap();
    VerilatedVpi::callCbs(cbStartOfSimulation);
    Simulator::settle();
    simulator.python();
    while (!Verilated::gotFinish()) {
        simulator.clock();
        simulator.python();
    }
    VerilatedVpi::callCbs(cbEndOfSimulation);
    return 0;
}
