// The host's end of a simulated board's serial line: what rtl/board.sv calls. The line is a pseudo-terminal.

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <poll.h>
#include <unistd.h>

#include <svdpi.h>

namespace {

constexpr int IDLE_MS = 50;     // the clock stands still while the board has nothing to do
constexpr int FULL_MS = 1000;   // what the host does not read for so long is lost, as on a real line
constexpr unsigned EVERY = 64;  // calls between looks at the terminal

const int terminal = [] {
    const char* text = std::getenv("REDLINE_SIM_SERIAL");
    if (!text) {
        std::fprintf(stderr, "simulator: REDLINE_SIM_SERIAL is not set; this program is started by sim/board.py\n");
        std::exit(2);
    }
    return std::atoi(text);
}();

uint8_t incoming[4096], outgoing[512];
ssize_t filled = 0, taken = 0;
size_t waiting = 0;
unsigned calls = 0;
bool gone = false;

bool ready(short events, int ms) {
    pollfd one{terminal, events, 0};
    return poll(&one, 1, ms) > 0 && (one.revents & (events | POLLHUP | POLLERR));
}

}  // namespace

extern "C" int serial_take(svBit idle) {
    if (taken == filled) {
        if (gone || (!idle && ++calls % EVERY)) return -1;
        if (!ready(POLLIN, idle ? IDLE_MS : 0)) return -1;
        filled = read(terminal, incoming, sizeof incoming);
        taken = 0;
        if (filled <= 0) {
            gone = filled == 0 || (errno != EAGAIN && errno != EINTR);
            filled = 0;
            return -1;
        }
    }
    return incoming[taken++];
}

extern "C" void serial_flush() {
    size_t sent = 0;
    while (sent < waiting && ready(POLLOUT, FULL_MS)) {
        const ssize_t now = write(terminal, outgoing + sent, waiting - sent);
        if (now <= 0) break;
        sent += static_cast<size_t>(now);
    }
    waiting = 0;
}

extern "C" void serial_give(int data) {
    outgoing[waiting++] = static_cast<uint8_t>(data);
    if (waiting == sizeof outgoing) serial_flush();
}

extern "C" svBit serial_gone() { return gone; }
