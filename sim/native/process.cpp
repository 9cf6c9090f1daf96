// Start-up of the simulator process, and its register script and error report.

#include "process.h"

#include <cerrno>
#include <cstdarg>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

Process process;

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "simulator: %s: %s\n", what, std::strerror(errno));
    std::exit(2);
}

int descriptor(const char* name, bool required) {
    const char* text = std::getenv(name);
    if (!text) {
        if (!required) return -1;
        std::fprintf(stderr, "simulator: %s is not set; this program is started by sim/client.py\n", name);
        std::exit(2);
    }
    return std::atoi(text);
}

uint8_t* map(int fd, uint64_t bytes, const char* what) {
    struct stat status;
    if (fstat(fd, &status) != 0) fail(what);
    if (static_cast<uint64_t>(status.st_size) < bytes) {
        std::fprintf(stderr, "simulator: the file of %s is %lld bytes, fewer than %llu\n", what,
                     static_cast<long long>(status.st_size), static_cast<unsigned long long>(bytes));
        std::exit(2);
    }
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) fail(what);
    return static_cast<uint8_t*>(at);
}

}  // namespace

void process_open() {
    process.control = reinterpret_cast<Control*>(map(descriptor("REDLINE_SIM_CONTROL", true), CONTROL_BYTES, "control"));
    if (process.control->magic != CONTROL_MAGIC) {
        std::fprintf(stderr, "simulator: the control page is of another version; rebuild\n");
        std::exit(2);
    }
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail("prctl");
    // The host may have died before the line above.
    if (static_cast<uint32_t>(getppid()) != process.control->parent) std::exit(2);
    process.memory = map(descriptor("REDLINE_SIM_MEMORY", true), process.control->memory_bytes, "device memory");
    process.socket = descriptor("REDLINE_SIM_SOCKET", true);
    process.probe = descriptor("REDLINE_SIM_PROBE", false);
    process.waves = std::getenv("REDLINE_SIM_WAVES");
}

void process_error(const char* format, ...) {
    char text[sizeof(Control::message)];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    constexpr uint32_t LOGGED = 20;
    const uint32_t earlier = process.control->errors++;
    if (earlier == 0) std::memcpy(process.control->message, text, sizeof text);
    if (earlier < LOGGED) {
        std::fprintf(stderr, "cycle %llu: %s\n", static_cast<unsigned long long>(process_cycle()), text);
    }
}

extern "C" int control_fetch(int index, int* address, int* data) {
    const Control& control = *process.control;
    if (static_cast<uint32_t>(index) >= control.ops) return 0;
    *address = static_cast<int>(control.address[index]);
    *data = static_cast<int>(control.data[index]);
    return static_cast<int>(control.op[index]);
}

extern "C" void control_result(int index, int data, int response) {
    process.control->data[index] = static_cast<uint32_t>(data);
    process.control->response[index] = static_cast<uint32_t>(response);
}
