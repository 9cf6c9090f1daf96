// Data and timing of the simulated memory: what rtl/axi_memory.sv calls.

#include <algorithm>
#include <cstring>
#include <deque>

#include <svdpi.h>

#include "process.h"

namespace {

constexpr int OKAY = 0, DECERR = 3;
constexpr int INCR = 1;
constexpr uint64_t PAGE = 4096;

struct Burst {
    uint64_t address;
    int beats;
    uint64_t due;  // cycle of the first beat
    bool bad;
};

struct Response {
    uint64_t due;
    int value;
};

// Spaces beats so that their average rate is the configured one. Times in 1/256 cycle.
class Rate {
public:
    bool free(uint64_t now) const { return next_ <= now << 8; }
    void take(uint64_t now, uint64_t bytes, uint32_t rate) {
        // One cycle may be caught up, so that rates that are no whole fraction of a beat come out right.
        const uint64_t earliest = now == 0 ? 0 : (now - 1) << 8;
        next_ = std::max(next_, earliest) + (bytes << 16) / rate;
    }
    int wait(uint64_t now) const {
        const uint64_t whole = (next_ + 255) >> 8;
        return whole > now + 1 ? static_cast<int>(whole - now - 1) : 0;
    }

private:
    uint64_t next_ = 0;
};

std::deque<Burst> reads, writes;
std::deque<Response> responses;
Rate read_rate, write_rate;
uint64_t port_bytes = 0;
uint64_t random_state = 0;

uint64_t due() { return process_cycle() + std::max<uint32_t>(process.control->latency, 1) - 1; }

uint32_t draw() {
    // splitmix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
}

Burst accept(const char* what, uint64_t address, int length, int size, int burst, int bytes) {
    port_bytes = static_cast<uint64_t>(bytes);
    Burst request{address & ~(port_bytes - 1), length + 1, due(), false};
    const uint64_t total = port_bytes * static_cast<uint64_t>(request.beats);
    const auto shown = static_cast<unsigned long long>(address);
    if (burst != INCR || (1ull << size) != port_bytes) {
        process_error("%s of %d beats at %#llx has burst type %d and %llu-byte beats; the memory takes INCR of %llu bytes",
                      what, request.beats, shown, burst, 1ull << size, static_cast<unsigned long long>(port_bytes));
        request.bad = true;
    } else if (request.address / PAGE != (request.address + total - 1) / PAGE) {
        process_error("%s of %d beats at %#llx crosses a 4 KB boundary", what, request.beats, shown);
        request.bad = true;
    } else if (request.address >= process.control->memory_bytes ||
               total > process.control->memory_bytes - request.address) {
        process_error("%s of %llu bytes at %#llx is outside device memory (%llu bytes)", what,
                      static_cast<unsigned long long>(total), shown,
                      static_cast<unsigned long long>(process.control->memory_bytes));
        request.bad = true;
    }
    return request;
}

}  // namespace

extern "C" svBit memory_stalls_enabled() {
    random_state = process.control->stall_seed;
    return std::any_of(std::begin(process.control->stall), std::end(process.control->stall),
                       [](uint32_t probability) { return probability != 0; });
}

extern "C" unsigned char memory_stalls() {
    unsigned char mask = 0;
    for (int channel = 0; channel < 5; ++channel) {
        if (draw() < process.control->stall[channel]) mask |= static_cast<unsigned char>(1 << channel);
    }
    return mask;
}

extern "C" void memory_read_request(unsigned long long address, int length, int size, int burst, int bytes) {
    reads.push_back(accept("read", address, length, size, burst, bytes));
}

extern "C" svBit memory_read_beat(svBitVecVal* data, svBit* last, unsigned char* response) {
    if (reads.empty()) return 0;
    const uint64_t now = process_cycle();
    Burst& burst = reads.front();
    if (now < burst.due || !read_rate.free(now)) return 0;
    read_rate.take(now, port_bytes, process.control->read_rate);
    if (burst.bad) {
        std::memset(data, 0, port_bytes);
    } else {
        std::memcpy(data, process.memory + burst.address, port_bytes);
    }
    *response = static_cast<unsigned char>(burst.bad ? DECERR : OKAY);
    burst.address += port_bytes;
    *last = --burst.beats == 0;
    if (*last) reads.pop_front();
    return 1;
}

extern "C" void memory_write_request(unsigned long long address, int length, int size, int burst, int bytes) {
    writes.push_back(accept("write", address, length, size, burst, bytes));
}

extern "C" int memory_write_beat(const svBitVecVal* data, const svBitVecVal* strobe, svBit last) {
    const uint64_t now = process_cycle();
    Burst& burst = writes.front();
    if (!burst.bad) {
        uint8_t* to = process.memory + burst.address;
        const auto* from = reinterpret_cast<const uint8_t*>(data);
        for (uint64_t byte = 0; byte < port_bytes; ++byte) {
            if (strobe[byte / 32] >> (byte % 32) & 1) to[byte] = from[byte];
        }
    }
    burst.address += port_bytes;
    if ((--burst.beats == 0) != static_cast<bool>(last)) {
        process_error("wlast is %d with %d beats of the burst left", last, burst.beats);
    }
    write_rate.take(now, port_bytes, process.control->write_rate);
    if (burst.beats == 0) {
        responses.push_back({due(), burst.bad ? DECERR : OKAY});
        writes.pop_front();
    }
    return write_rate.wait(now);
}

extern "C" svBit memory_write_response(unsigned char* response) {
    if (responses.empty() || process_cycle() < responses.front().due) return 0;
    *response = static_cast<unsigned char>(responses.front().value);
    responses.pop_front();
    return 1;
}
