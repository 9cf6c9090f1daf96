// Executes the descriptors of one compute unit on device memory, bit for bit like the gateware (docs/architecture.md).
//
// One work-group is one compute unit: its work-items share the words of a load, the outputs of a job and the pixels of
// a result, and meet at a barrier in between. What comes before this file is generated from `hw` (source.py): LANES,
// VEC, FEATURE_WORDS, PIPECNN, the descriptor's fields (`job_t`, `read_job`) and flags, the records' layouts.
//
// GROUP        work-items of a compute unit
// LATE_GROUPS  groups of output bits whose lateness a build with overclocking knows (late.cl); 0 without
// BLOCK        outputs that a work-item computes at once, for which weights are fetched once
// operand      type in which features and weights lie on chip: int where widening costs more than bytes (processors)
// OPERAND_INT  1 where operand is int
//
// No vector of 64 bytes crosses a call, a built-in function's neither: how it would differs between processors with
// AVX-512 and without, and compilers warn of that. Such vectors are loaded and stored where they lie (all of them at
// multiples of their size) or in halves, and operators alone compute with them.

#if LANES >= 16
#define WIDE 16
#else
#define WIDE LANES
#endif
#define VECTORS (LANES / WIDE)
#define CHUNK (LANES < VEC ? LANES : VEC)

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
typedef JOIN(int, WIDE) lanes_t;
typedef JOIN(uint, WIDE) sums_t;
typedef JOIN(char, WIDE) chars_t;
#define LOAD_CHARS JOIN(vload, WIDE)
#define STORE_CHARS JOIN(vstore, WIDE)
#define AS_INTS JOIN(as_int, WIDE)
#define AS_UINTS JOIN(as_uint, WIDE)
#define LOAD_WORD JOIN(vload, VEC)
#if WIDE == 16
#define TO_INTS(chars) ((lanes_t)(convert_int8((chars).lo), convert_int8((chars).hi)))
#define TO_CHARS(ints) ((chars_t)(convert_char8((ints).lo), convert_char8((ints).hi)))
#else
#define TO_INTS JOIN(convert_int, WIDE)
#define TO_CHARS JOIN(convert_char, WIDE)
#endif
// Vector `q` of lanes' words in memory.
#define LANES_AT(q, from) (((__global const sums_t *)(from))[q])
#if OPERAND_INT && WIDE == 16
// In halves, which the compiler joins: a load of the whole is a fifth slower under PoCL.
#define WEIGHTS_AT(q, from) ((lanes_t)(vload8(2 * (q), from), vload8(2 * (q) + 1, from)))
#elif OPERAND_INT
#define WEIGHTS_AT JOIN(vload, WIDE)
#else
#define WEIGHTS_AT(q, from) TO_INTS(LOAD_CHARS(q, from))
#endif

#if GROUP == 1
#define MEET
#else
#define MEET barrier(CLK_GLOBAL_MEM_FENCE)
#endif

#define EACH(index, count) (uint index = get_local_id(0); index < (count); index += GROUP)

typedef __global uchar *bytes_t;
typedef __global const uchar *records_t;
typedef __global operand *operands_t;
typedef __global const operand *reads_t;

// Where one output's taps begin.
typedef struct {
    int word;
    int y;
    int x;
} place_t;

// A word of each lane, one by one and as vectors.
typedef union {
    uint lane[LANES];
    sums_t wide[VECTORS];
} words_t;

// What the outputs of one group of LANES channels share.
typedef struct {
    sums_t start[VECTORS];
    lanes_t added[VECTORS];
    lanes_t shift[VECTORS];
} group_t;

static place_t place_of(const job_t *job, uint group, uint output) {
    const uint pixels = (uint)job->out_h * job->out_w;
    const uint image = output / pixels, pixel = output % pixels;
    place_t at;
    at.y = (int)(pixel / job->out_w) * job->stride_y - job->pad_y;
    at.x = (int)(pixel % job->out_w) * job->stride_x - job->pad_x;
    at.word = (int)(job->src_base + group / job->src_period * job->src_step + image * job->src_image) +
              at.y * (int)job->in_w + at.x;
    return at;
}

// The word of features that a step reads; behind the last word of both buffers lies one of zeros, for the padding.
static reads_t tap(const job_t *job, reads_t source, reads_t zeros, place_t at, uint z, uint ky, uint kx) {
    const bool inside = (uint)(at.y + (int)ky) < job->in_h && (uint)(at.x + (int)kx) < job->in_w;
    const uint word = (uint)at.word + z * job->src_plane + ky * job->src_tap + kx;
    return inside ? source + (word & (FEATURE_WORDS - 1)) * VEC : zeros;
}

static group_t read_group(const job_t *job, records_t memory, uint group) {
    words_t bias, shift;
    for (uint lane = 0; lane < LANES; lane++) {
        records_t record = memory + job->param_addr + (group * LANES + lane) * PARAM_BYTES;
        bias.lane[lane] = as_uint(vload4(0, record + PARAM_BIAS));
        shift.lane[lane] = record[PARAM_SHIFT] & 31;
    }
    group_t shared;
    for (uint q = 0; q < VECTORS; q++) {
        shared.added[q] = AS_INTS(bias.wide[q]);
#if PIPECNN
        shared.start[q] = (sums_t)(0);
#else
        shared.start[q] = bias.wide[q];
#endif
        shared.shift[q] = AS_INTS(shift.wide[q]);
    }
    return shared;
}

// Vector `q` of accumulators to outputs, in either arithmetic.
static chars_t requantise(const job_t *job, const group_t *shared, uint q, const sums_t *sums) {
    const lanes_t acc = AS_INTS(sums[q]), shift = shared->shift[q];
    // `acc >> (shift - 1)`; its lowest bit is what rounds, and no sum is made that could wrap.
    const lanes_t twice = shift == 0 ? acc : acc >> ((shift - 1) & 31);
    lanes_t value = (acc >> shift) + (shift == 0 ? (lanes_t)(0) : twice & 1);
#if PIPECNN
    // The bias is added in 8 bits, where it may wrap, unless the sum has saturated.
    const lanes_t added = ((value + shared->added[q]) << 24) >> 24;
    value = value > 127 || value < -128 ? value : added;
#endif
    const lanes_t lower = (lanes_t)(job->flags & FLAG_RELU ? 0 : -128), upper = (lanes_t)((int)job->upper);
    value = value < lower ? lower : value;
    value = value > upper ? upper : value;
    return TO_CHARS(value);
}

// Position of the first event at or after (job, slot).
static uint first_event(records_t events, uint count, uint job, ulong slot) {
    uint low = 0;
    while (low < count) {
        const uint middle = low + (count - low) / 2;
        records_t event = events + (ulong)middle * EVENT_BYTES;
        const uint its_job = as_uint(vload4(0, event + EVENT_JOB));
        const bool before = its_job < job || (its_job == job && as_uint(vload4(0, event + EVENT_SLOT)) < slot);
        low = before ? middle + 1 : low;
        count = before ? count : middle;
    }
    return low;
}

// The flips that events from `*first` on, before `last`, make after one step, by lane; how many there are. `*first`
// moves on to the next step's.
static uint read_flips(records_t events, uint *first, uint last, uint slot, words_t *flips) {
    for (uint lane = 0; lane < LANES; lane++)
        flips->lane[lane] = 0;
    uint applied = 0;
    for (; *first < last; ++*first) {
        records_t event = events + (ulong)*first * EVENT_BYTES;
        if (as_uint(vload4(0, event + EVENT_SLOT)) != slot)
            break;
        const uint lane = as_ushort(vload2(0, event + EVENT_LANE));
        if (lane >= LANES)
            continue;
        applied++;
        flips->lane[lane] ^= 1u << (as_ushort(vload2(0, event + EVENT_BIT)) & 31);
    }
    return applied;
}

// One output, step by step, with the flips of events `first` to `last - 1` in its accumulators; how many there were.
static uint with_flips(const job_t *job, const group_t *shared, reads_t source, reads_t zeros, reads_t weights,
                       place_t at, records_t events, uint first, uint last, uint slot, sums_t *sums) {
    for (uint q = 0; q < VECTORS; q++)
        sums[q] = shared->start[q];
    uint applied = 0;
    for (uint z = 0; z < job->groups_in; z++)
        for (uint ky = 0; ky < job->kernel_h; ky++)
            for (uint kx = 0; kx < job->kernel_w; kx++) {
                reads_t word = tap(job, source, zeros, at, z, ky, kx);
                for (uint v = 0; v < VEC; v++)
                    for (uint q = 0; q < VECTORS; q++)
                        sums[q] += AS_UINTS(WEIGHTS_AT(v * VECTORS + q, weights) * (int)word[v]);
                weights += LANES * VEC;
                if (first < last && as_uint(vload4(0, events + (ulong)first * EVENT_BYTES + EVENT_SLOT)) == slot) {
                    words_t flips;
                    applied += read_flips(events, &first, last, slot, &flips);
                    for (uint q = 0; q < VECTORS; q++)
                        sums[q] ^= flips.wide[q];
                }
                slot++;
            }
    return applied;
}

// A step of `count` outputs: the products of each one's word of features by a step's weights are added to its sums. A
// macro, so that `count` is a constant and the sums stay in registers.
#define ADD_PRODUCTS(count, sums, word, weights)                                                                       \
    _Pragma("unroll") for (uint v = 0; v < VEC; v++)                                                                   \
        _Pragma("unroll") for (uint q = 0; q < VECTORS; q++) {                                                         \
        const lanes_t weight = WEIGHTS_AT(v * VECTORS + q, weights);                                                   \
        _Pragma("unroll") for (uint p = 0; p < (count); p++) sums[p][q] += AS_UINTS(weight * (int)word[p][v]);         \
    }

// Outputs `first` to `first + count - 1` of a group, at most BLOCK of them.
static void outputs(const job_t *job, const group_t *shared, uint group, uint first, uint count, reads_t source,
                    reads_t zeros, reads_t weights, sums_t sums[BLOCK][VECTORS]) {
    place_t at[BLOCK];
#pragma unroll
    for (uint p = 0; p < BLOCK; p++) {
        at[p] = place_of(job, group, first + (p < count ? p : 0));
#pragma unroll
        for (uint q = 0; q < VECTORS; q++)
            sums[p][q] = shared->start[q];
    }
    for (uint z = 0; z < job->groups_in; z++)
        for (uint ky = 0; ky < job->kernel_h; ky++)
            for (uint kx = 0; kx < job->kernel_w; kx++) {
                reads_t word[BLOCK];
#pragma unroll
                for (uint p = 0; p < BLOCK; p++)
                    word[p] = tap(job, source, zeros, at[p], z, ky, kx);
                ADD_PRODUCTS(BLOCK, sums, word, weights)
                weights += LANES * VEC;
            }
}

// A group's result to the on-chip buffer or to memory: channel groups of VEC beyond `dst_groups` are dropped. In memory,
// `gap` bytes are left out after each row of `width` pixels, and the job's first channel may lie within a word.
static void deliver(const job_t *job, uint group, __global const char *result, uint pixels, operands_t buffer,
                    bytes_t memory, ulong address, uint plane, uint image_stride, uint width, uint gap) {
    const uint within = LANES < VEC ? (uint)address % VEC : 0;
    address -= within;
    for EACH (at, job->images * pixels * (LANES / CHUNK)) {
        const uint output = at / (LANES / CHUNK), part = at % (LANES / CHUNK);
        const uint image = output / pixels, pixel = output % pixels;
        const uint channel = within + group * LANES + part * CHUNK;
        if (channel / VEC >= job->dst_groups)
            continue;
        __global const char *from = result + (ulong)output * LANES + part * CHUNK;
        const uint element = channel % VEC;
        if (buffer) {
            const uint word = job->dst_base + image * job->dst_image + channel / VEC * job->dst_plane + pixel;
            for (uint c = 0; c < CHUNK; c++)
                buffer[(word & (FEATURE_WORDS - 1)) * VEC + element + c] = from[c];
        } else {
            const ulong to = address + (ulong)image * image_stride + (ulong)(channel / VEC) * plane;
            for (uint c = 0; c < CHUNK; c++)
                memory[to + (ulong)pixel * VEC + (ulong)(pixel / width) * gap + element + c] = (uchar)from[c];
        }
    }
}

// The largest of a pooling window, lane by lane.
static void pool(const job_t *job, __global const char *conv, __global char *pooled) {
    const uint pixels = (uint)job->pool_h * job->pool_w;
    for EACH (output, job->images * pixels) {
        const uint image = output / pixels, pixel = output % pixels;
        const int y = (int)(pixel / job->pool_w) * job->pool_stride - job->pool_pad;
        const int x = (int)(pixel % job->pool_w) * job->pool_stride - job->pool_pad;
        for (uint q = 0; q < VECTORS; q++) {
            chars_t most = (chars_t)(-128);
            for (int ky = max(y, 0); ky < min(y + (int)job->pool_kernel, (int)job->out_h); ky++)
                for (int kx = max(x, 0); kx < min(x + (int)job->pool_kernel, (int)job->out_w); kx++) {
                    const ulong from = ((ulong)image * job->out_h + ky) * job->out_w + kx;
                    most = max(most, LOAD_CHARS(from * VECTORS + q, conv));
                }
            STORE_CHARS(most, (ulong)output * VECTORS + q, pooled);
        }
    }
}

// Loads words of VEC bytes, segments back to back.
static void load(const job_t *job, records_t memory, operands_t target) {
    for EACH (word, job->load_words * job->load_segments) {
        const ulong from = job->load_addr + (ulong)(word / job->load_words) * job->load_stride +
                           (ulong)(word % job->load_words) * VEC;
        const JOIN(char, VEC) bytes = LOAD_WORD(0, (__global const char *)(memory + from));
        operands_t to = target + (ulong)((job->load_base + word) & (FEATURE_WORDS - 1)) * VEC;
#pragma unroll
        for (uint v = 0; v < VEC; v++)
            to[v] = bytes[v];
    }
}

// A group's weights, from [step][LANES][VEC] to [step][VEC][LANES].
static void load_weights(const job_t *job, records_t memory, uint group, operands_t weights) {
    for EACH (step, job->steps) {
        __global const char *from =
            (__global const char *)(memory + job->weight_addr) + ((ulong)group * job->steps + step) * (LANES * VEC);
        operands_t to = weights + (ulong)step * (LANES * VEC);
        for (uint v = 0; v < VEC; v++)
            for (uint lane = 0; lane < LANES; lane++)
                to[v * LANES + lane] = from[lane * VEC + v];
    }
}

// What becomes of an output's accumulators: they wait for the job that goes on from them, or become a result.
static void leave(const job_t *job, const group_t *shared, uint output, const sums_t sums[VECTORS],
                  __global char *conv, __global uint *status) {
    if (job->flags & FLAG_PARTIAL) {
        for (uint q = 0; q < VECTORS; q++)
            ((__global sums_t *)(status + STATUS_CARRIED))[q] = sums[q];
        return;
    }
    const uint to = job->flags & FLAG_ONE ? status[STATUS_JOINED]++ : output;
    for (uint q = 0; q < VECTORS; q++)
        STORE_CHARS(requantise(job, shared, q, sums), (ulong)to * VECTORS + q, conv);
}

static void convolve(const job_t *job, uint number, uint group, reads_t source, reads_t zeros, reads_t weights,
                     records_t memory, records_t events, uint first_flip, uint last_flip, __global char *conv,
                     __global uint *status) {
    group_t shared = read_group(job, memory, group);
    // A job of one output is the first work-item's, and so is what waits for the next job.
    const uint count = job->flags & FLAG_ONE ? 1 : job->images * job->out_h * job->out_w;
    if (job->flags & FLAG_CONTINUE)
        for (uint q = 0; q < VECTORS; q++)
            shared.start[q] = LANES_AT(q, status + STATUS_CARRIED);
    for EACH (block, (count + BLOCK - 1) / BLOCK) {
        const uint first = block * BLOCK, here = min((uint)BLOCK, count - first);
        sums_t sums[BLOCK][VECTORS];
        outputs(job, &shared, group, first, here, source, zeros, weights, sums);
        for (uint p = 0; p < here; p++) {
            sums_t hit[VECTORS];
            for (uint q = 0; q < VECTORS; q++)
                hit[q] = sums[p][q];
            if (first_flip < last_flip) {
                const ulong slot = ((ulong)group * count + first + p) * job->steps;
                const uint from = first_event(events, last_flip, number, slot);
                const uint to = first_event(events, last_flip, number, slot + job->steps);
                if (from < to) {
                    const place_t at = place_of(job, group, first + p);
                    const uint applied =
                        with_flips(job, &shared, source, zeros, weights, at, events, from, to, (uint)slot, hit);
                    atomic_add(status + STATUS_FAULTS, applied);
                }
            }
            leave(job, &shared, first + p, hit, conv, status);
        }
    }
}

// Flips in a group's final output. Two may meet in a byte, so one work-item does them all.
static void flip_features(const job_t *job, uint number, uint group, records_t events, uint count, __global char *final,
                          __global uint *status) {
    const uint pixels = job->images * job->pool_h * job->pool_w;
    const ulong slot = (ulong)group * pixels;
    const uint from = first_event(events, count, number, slot);
    const uint to = first_event(events, count, number, slot + pixels);
    if (get_local_id(0) == 0) {
        for (uint at = from; at < to; at++) {
            records_t event = events + (ulong)at * EVENT_BYTES;
            const uint lane = as_ushort(vload2(0, event + EVENT_LANE));
            const ulong output = as_uint(vload4(0, event + EVENT_SLOT)) - slot;
            if (lane >= LANES)
                continue;
            final[output * LANES + lane] ^= (char)(1u << (as_ushort(vload2(0, event + EVENT_BIT)) & 7));
            atomic_inc(status + STATUS_FAULTS);
        }
    }
}

#if LATE_GROUPS
// Those of late.cl, which follows.
static void forget_masks(__global uint *banks);
static void take_masks(records_t list, uint count, __global uint *banks);
static void convolve_late(const job_t *job, uint number, uint group, reads_t source, reads_t zeros, reads_t weights,
                          records_t memory, records_t events, uint first_flip, uint last_flip,
                          __global const uint *banks, __global char *conv, __global uint *status);
#endif

// Arguments up to `late_mask_count` are those of the register map (hw.registers). The rest stand for what the gateware
// has of its own: its memory, its buffers, its counters, and in builds with overclocking the masks of its banks.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void redline(__global const uchar *descriptors, uint jobs, __global const uchar *mac_events, uint mac_event_count,
             __global const uchar *feature_events, uint feature_event_count, __global const uchar *late_masks,
             uint late_mask_count, __global uchar *memory, __global operand *features, __global operand *weights,
             __global char *results, uint result_bytes, __global uint *status
#if LATE_GROUPS
             , __global uint *banks
#endif
) {
    reads_t zeros = features + 2 * FEATURE_WORDS * VEC;
    __global char *conv = results, *pooled = results + result_bytes / 2;
    if (get_local_id(0) == 0) {
        status[STATUS_FAULTS] = status[STATUS_JOBS] = 0;
        for (uint v = 0; v < VEC; v++)
            features[2 * FEATURE_WORDS * VEC + v] = 0;
    }
#if LATE_GROUPS
    if (late_mask_count) {
        forget_masks(banks);
        MEET;
        take_masks(late_masks, late_mask_count, banks);
    }
#endif
    for (uint number = 0; number < jobs; number++) {
        const job_t job = read_job(descriptors + (ulong)number * DESCRIPTOR_BYTES);
        operands_t source = features + (job.flags & FLAG_SRC_B ? FEATURE_WORDS * VEC : 0);
        operands_t target = features + (job.flags & FLAG_DST_B ? FEATURE_WORDS * VEC : 0);
        MEET;
        if (job.flags & FLAG_LOAD)
            load(&job, memory, source);
        if (job.flags & FLAG_LOAD_ONLY)
            continue;
        const bool ends = !(job.flags & (FLAG_PARTIAL | FLAG_MORE));
        if (get_local_id(0) == 0 && !(job.flags & (FLAG_PARTIAL | FLAG_RESUME))) {
            status[STATUS_WALK] = number;
            status[STATUS_JOINED] = 0;
        }
        const uint first_flip = first_event(mac_events, mac_event_count, number, 0);
        const uint last_flip = first_event(mac_events, mac_event_count, number + 1, 0);
        for (uint group = 0; group < job.groups_out; group++) {
            MEET;
            load_weights(&job, memory, group, weights);
            MEET;
#if LATE_GROUPS
            if (late_mask_count)
                convolve_late(&job, number, group, source, zeros, weights, memory, mac_events, first_flip, last_flip,
                              banks, conv, status);
            else
#endif
                convolve(&job, number, group, source, zeros, weights, memory, mac_events, first_flip, last_flip, conv,
                         status);
            MEET;
            __global char *final = job.flags & FLAG_POOL ? pooled : conv;
            if (ends && job.flags & FLAG_POOL)
                pool(&job, conv, pooled);
            const uint pixels = (uint)job.pool_h * job.pool_w;
            if (ends && job.flags & FLAG_WRITE_CONV)
                deliver(&job, group, conv, (uint)job.out_h * job.out_w, 0, memory, job.conv_addr, job.conv_plane,
                        job.conv_image, job.out_w, job.conv_gap);
            if (feature_event_count) {
                MEET;
                if (ends)
                    flip_features(&job, status[STATUS_WALK], group, feature_events, feature_event_count, final,
                                  status);
            }
            MEET;
            if (ends && job.flags & FLAG_STORE)
                deliver(&job, group, final, pixels, target, memory, 0, 0, 0, 1, 0);
            if (ends && job.flags & FLAG_WRITE_POOL)
                deliver(&job, group, final, pixels, 0, memory, job.pool_addr, job.pool_plane, job.pool_image, job.pool_w,
                        job.pool_gap);
        }
    }
    if (get_local_id(0) == 0)
        status[STATUS_JOBS] = jobs;
}

// What this program was built for: the host refuses another. Gateware says 0 for the size of an operand.
__kernel void redline_identity(__global ulong *identity) {
    identity[0] = CONFIG_HASH;
    identity[1] = INTERFACE_VERSION;
    identity[2] = sizeof(operand);
}
