// What the simulator process shares with its host: device memory, the control page and a probe trace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "control.h"

struct Process {
    Control* control = nullptr;
    uint8_t* memory = nullptr;
    int socket = -1;
    int probe = -1;              // where probe records go, or -1
    const char* waves = nullptr; // where the waveform goes, or null
};

extern Process process;

// Maps what the host passed in the environment and ties this process's life to the host's; exits with a message if it cannot.
void process_open();

// Records a bad access: the first one's text reaches the host through the control page, all of them the log.
void process_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Writes buffered probe records out. Called whenever the host may look.
void probe_flush();

inline uint64_t process_cycle() { return process.control->cycles; }

// The host reads the counter while this process writes it.
inline void process_count_cycle() {
    __atomic_store_n(&process.control->cycles, process.control->cycles + 1, __ATOMIC_RELAXED);
}
