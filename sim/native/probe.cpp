// Probe records: buffered by kind, and written as chunks that sim/probe.py reads.
//
// A chunk is {uint32 kind, uint32 bytes of a record, uint64 records}, then the records: {uint64 cycle, payload}.

#include <cstdio>
#include <cstring>
#include <vector>

#include <svdpi.h>
#include <unistd.h>

#include "process.h"

namespace {

enum Kind : uint32_t { STEP, ACC, REQUANT, POOL, KINDS };

constexpr size_t CHUNK_BYTES = 1 << 20;

struct Buffer {
    std::vector<uint8_t> bytes;
    uint32_t record = 0;
    uint64_t records = 0;
};

Buffer buffers[KINDS];

void write_all(const void* data, size_t bytes) {
    const auto* at = static_cast<const uint8_t*>(data);
    while (bytes > 0) {
        const ssize_t done = write(process.probe, at, bytes);
        if (done <= 0) {
            process_error("the probe trace cannot be written (%zu bytes left)", bytes);
            process.probe = -1;
            return;
        }
        at += done;
        bytes -= static_cast<size_t>(done);
    }
}

void flush(Kind kind) {
    Buffer& buffer = buffers[kind];
    if (buffer.records == 0 || process.probe < 0) return;
    const struct {
        uint32_t kind, record;
        uint64_t records;
    } head{kind, buffer.record, buffer.records};
    write_all(&head, sizeof head);
    if (process.probe >= 0) write_all(buffer.bytes.data(), buffer.bytes.size());
    buffer.bytes.clear();
    buffer.records = 0;
}

void append(Buffer& buffer, const void* data, size_t bytes) {
    const auto* at = static_cast<const uint8_t*>(data);
    buffer.bytes.insert(buffer.bytes.end(), at, at + bytes);
}

void record(Kind kind, const void* first, size_t first_bytes, const void* second = nullptr, size_t second_bytes = 0) {
    if (process.probe < 0) return;
    Buffer& buffer = buffers[kind];
    const uint64_t cycle = process_cycle();
    buffer.record = static_cast<uint32_t>(sizeof cycle + first_bytes + second_bytes);
    append(buffer, &cycle, sizeof cycle);
    append(buffer, first, first_bytes);
    if (second) append(buffer, second, second_bytes);
    ++buffer.records;
    if (buffer.bytes.size() >= CHUNK_BYTES) flush(kind);
}

}  // namespace

void probe_flush() {
    for (uint32_t kind = 0; kind < KINDS; ++kind) flush(static_cast<Kind>(kind));
}

extern "C" void probe_step_record(const svBitVecVal* features, const svBitVecVal* weights, int lanes, int vec) {
    record(STEP, features, static_cast<size_t>(vec), weights, static_cast<size_t>(lanes) * static_cast<size_t>(vec));
}

extern "C" void probe_acc_record(const svBitVecVal* acc, int lanes) {
    record(ACC, acc, static_cast<size_t>(lanes) * 4);
}

extern "C" void probe_requant_record(const svBitVecVal* values, int lanes) {
    record(REQUANT, values, static_cast<size_t>(lanes));
}

extern "C" void probe_pool_record(const svBitVecVal* values, int lanes) {
    record(POOL, values, static_cast<size_t>(lanes));
}
