// The accelerator's arithmetic, layer by layer. Compiled once for each inner loop (LEVEL).
#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(name) JOIN(name, LEVEL)

#if defined(LEVEL_VNNI)
#include "tile_vnni.h"
#elif defined(LEVEL_AVX2)
#include "tile_avx2.h"
#else
#include "tile_portable.h"
#endif

namespace {

constexpr int BLOCK = 16;             // outputs of one register
constexpr int PANEL = 4;              // blocks computed together
constexpr int64_t FEW = 64;           // output pixels from which on weights are read from cache anyway
constexpr int64_t DEPTH = 512;        // quads whose weights stay in cache while few pixels take turns
constexpr uint8_t ZERO = 128;

using Tile = void (*)(const uint8_t *const *, const int32_t *, int64_t, int64_t, const int8_t *, int32_t *);

template <int B> constexpr Tile tile_of(int pixels) {
    constexpr int most = most_pixels(B);
    switch (pixels) {
    case 1: return tile<1, B>;
    case 2: return tile<most < 2 ? most : 2, B>;
    case 3: return tile<most < 3 ? most : 3, B>;
    case 4: return tile<most < 4 ? most : 4, B>;
    case 5: return tile<most < 5 ? most : 5, B>;
    case 6: return tile<most < 6 ? most : 6, B>;
    case 7: return tile<most < 7 ? most : 7, B>;
    default: return tile<most < 8 ? most : 8, B>;
    }
}

Tile tile_of(int pixels, int blocks) {
    switch (blocks) {
    case 1: return tile_of<1>(pixels);
    case 2: return tile_of<2>(pixels);
    case 3: return tile_of<3>(pixels);
    default: return tile_of<4>(pixels);
    }
}

int64_t ceil_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

uint8_t *pixel_of(const Tensor &t, int64_t image, int64_t y, int64_t x) {
    return t.at + image * t.image + y * t.row + x * t.pixel;
}

const uint8_t *window_of(const Layer &l, int64_t image, int64_t y, int64_t x) {
    return pixel_of(l.x, image, y * l.stride_y - l.pad_y, x * l.stride_x - l.pad_x);
}

// ---- requantisation

int32_t rounded(int32_t acc, int32_t shift) {
    // (acc + (1 << (shift - 1))) >> shift, without its overflow.
    return shift ? (acc >> shift) + ((acc >> (shift - 1)) & 1) : acc;
}

uint8_t requantised(const Layer &l, int32_t acc, int32_t shift, int32_t added) {
    int32_t value = rounded(acc, shift);
    if (l.pipecnn && value >= -128 && value <= 127) value = int8_t(uint8_t(value + added));
    value = std::min<int32_t>(std::max<int32_t>(value, int32_t(l.low)), int32_t(l.upper));
    return uint8_t(value + ZERO);
}

// Accumulators of some pixels, `count` (at most PANEL * BLOCK) of each, `wide` apart, to outputs; `at` is the first
// one's place in the layer's parameters. Parameters reach to the end of a block, so that whole blocks can be computed.
void requantise(const Layer &l, const int32_t *acc, int64_t wide, int64_t pixels, int64_t at, int64_t count,
                uint8_t *const *to) {
    const int32_t *shift = l.shift + at, *added = l.added + at;
#if defined(LEVEL_VNNI)
    const __m512i low = _mm512_set1_epi32(int(l.low)), upper = _mm512_set1_epi32(int(l.upper));
    const __m512i one = _mm512_set1_epi32(1);
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t left = count - i;
        const __mmask16 some = left >= BLOCK ? 0xFFFF : __mmask16((1u << left) - 1);
        const __m512i s = _mm512_loadu_si512(shift + i), less = _mm512_sub_epi32(s, one);
        const __mmask16 shifted = _mm512_test_epi32_mask(s, s);
        for (int64_t p = 0; p < pixels; p++) {
            const __m512i a = _mm512_loadu_si512(acc + p * wide + i);
            const __m512i half = _mm512_and_si512(_mm512_srav_epi32(a, less), one);
            __m512i v = _mm512_srav_epi32(a, s);
            v = _mm512_mask_add_epi32(v, shifted, v, half);
            if (l.pipecnn) {
                const __mmask16 inside = _mm512_cmple_epi32_mask(v, _mm512_set1_epi32(127)) &
                                         _mm512_cmpge_epi32_mask(v, _mm512_set1_epi32(-128));
                const __m512i sum = _mm512_add_epi32(v, _mm512_loadu_si512(added + i));
                v = _mm512_mask_mov_epi32(v, inside, _mm512_srai_epi32(_mm512_slli_epi32(sum, 24), 24));
            }
            v = _mm512_min_epi32(_mm512_max_epi32(v, low), upper);
            const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(v), _mm_set1_epi8(int8_t(ZERO)));
            _mm_mask_storeu_epi8(to[p] + i, some, bytes);
        }
    }
#else
    const int32_t low = int32_t(l.low), upper = int32_t(l.upper);
    for (int64_t p = 0; p < pixels; p++, acc += wide) {
        uint8_t *out = to[p];
        if (l.pipecnn) {
            for (int64_t i = 0; i < count; i++) out[i] = requantised(l, acc[i], shift[i], added[i]);
            continue;
        }
        for (int64_t i = 0; i < count; i++) {
            const int32_t s = shift[i], h = s ? s - 1 : 0, one = s ? 1 : 0;
            const int32_t value = (acc[i] >> s) + ((acc[i] >> h) & one);
            out[i] = uint8_t(std::min(std::max(value, low), upper) + ZERO);
        }
    }
#endif
}

// Those of one pixel.
void requantise(const Layer &l, const int32_t *acc, int64_t at, int64_t count, uint8_t *to) {
    requantise(l, acc, 0, 1, at, count, &to);
}

// ---- what is read

// Fills an image of a map with channels of others.
void gather(const Tensor &into, const Tensor *sources, const Run *runs, int64_t count, const Layer &l, int64_t image) {
    for (int64_t y = 0; y < l.in_h; y++)
        for (int64_t r = 0; r < count; r++) {
            const Run &run = runs[r];
            const uint8_t *from = pixel_of(sources[run.source], image, y, 0) + run.from;
            uint8_t *to = pixel_of(into, image, y, 0) + run.to;
            const int64_t step = sources[run.source].pixel;
            if (run.count == 1)
                for (int64_t x = 0; x < l.in_w; x++) to[x * into.pixel] = from[x * step];
            else
                for (int64_t x = 0; x < l.in_w; x++) std::memcpy(to + x * into.pixel, from + x * step, run.count);
        }
}

// ---- convolution

// Output pixels of several images, counted through.
struct Walker {
    const Layer &l;
    int64_t image, y, x;
    const uint8_t *window;
    uint8_t *output;
    Walker(const Layer &layer, int64_t first) : l(layer), image(first), y(0), x(0) { place(); }
    void next() {
        window += l.stride_x * l.x.pixel, output += l.conv.pixel;
        if (++x == l.out_w) {
            x = 0;
            if (++y == l.out_h) y = 0, image++;
            place();
        }
    }
    void place() { window = window_of(l, image, y, x), output = pixel_of(l.conv, image, y, x); }
};

void convolve(const Layer &l, int64_t first, int64_t end) {
    const int64_t pixels = (end - first) * l.out_h * l.out_w;
    const int64_t group_in = l.channels / l.groups, group_out = l.outputs / l.groups;
    const int64_t padded = ceil_to(group_out, BLOCK);
    alignas(64) int32_t acc[FEW * PANEL * BLOCK];
    const uint8_t *windows[FEW];
    uint8_t *outputs[FEW];
    for (int64_t g = 0; g < l.groups; g++)
        for (int64_t m = 0; m < group_out; m += PANEL * BLOCK) {
            const int64_t count = std::min<int64_t>(PANEL * BLOCK, group_out - m);
            const int blocks = int((count + BLOCK - 1) / BLOCK), wide = blocks * BLOCK;
            const int8_t *weights = l.weights + (g * padded + m) * l.quads * 4;
            const int32_t *start = l.start + g * padded + m;
            const int most = most_pixels(blocks);
            // Few pixels take turns on weights that stay in cache; of many, each tile goes through all weights.
            const int64_t together = pixels <= FEW ? pixels : most;
            const int64_t depth = pixels <= FEW ? DEPTH : l.quads;
            Walker walker(l, first);
            for (int64_t p = 0; p < pixels; p += together) {
                const int64_t here = std::min(together, pixels - p);
                for (int64_t i = 0; i < here; i++, walker.next()) {
                    windows[i] = walker.window + g * group_in;
                    outputs[i] = walker.output + g * group_out + m;
                    for (int64_t b = 0; b < wide; b += BLOCK) std::memcpy(acc + i * wide + b, start + b, BLOCK * sizeof(int32_t));
                }
                for (int64_t q = 0; q < l.quads; q += depth)
                    for (int64_t i = 0; i < here; i += most) {
                        const int n = int(std::min<int64_t>(most, here - i));
                        tile_of(n, blocks)(windows + i, l.offsets, q, std::min(q + depth, l.quads), weights,
                                           acc + i * wide);
                    }
                requantise(l, acc, wide, here, g * padded + m, count, outputs);
            }
        }
}

void depthwise(const Layer &l, int64_t first, int64_t end) {
    static thread_local std::vector<int32_t> sums;
    const int64_t m = l.outputs;
    sums.resize(ceil_to(m, BLOCK));
    int32_t *acc = sums.data();
    for (Walker walker(l, first); walker.image < end; walker.next()) {
        std::memcpy(acc, l.start, m * sizeof(int32_t));
        const uint8_t *window = walker.window;
        const int8_t *w = l.weights;
        for (int64_t ky = 0; ky < l.kernel_h; ky++)
            for (int64_t kx = 0; kx < l.kernel_w; kx++, w += m) {
                const uint8_t *x = window + ky * l.x.row + kx * l.x.pixel;
                for (int64_t c = 0; c < m; c++)
                    acc[c] = int32_t(uint32_t(acc[c]) + uint32_t(int32_t(x[c]) * int32_t(w[c])));
            }
        uint8_t *to = walker.output;
        for (int64_t c = 0; c < m; c += PANEL * BLOCK)
            requantise(l, acc + c, c, std::min<int64_t>(PANEL * BLOCK, m - c), to + c);
    }
}

void add(const Layer &l, int64_t first, int64_t end) {
    alignas(64) int32_t acc[PANEL * BLOCK];
    for (Walker walker(l, first); walker.image < end; walker.next()) {
        const uint8_t *a = walker.window;
        const uint8_t *b = pixel_of(l.second, walker.image, walker.y, walker.x);
        uint8_t *to = walker.output;
        for (int64_t c = 0; c < l.outputs; c += PANEL * BLOCK) {
            const int64_t count = std::min<int64_t>(PANEL * BLOCK, l.outputs - c);
            const int8_t *wa = l.weights + c, *wb = l.weights + l.outputs + c;
            for (int64_t i = 0; i < count; i++)
                acc[i] = int32_t(uint32_t(l.start[c + i]) +
                                 uint32_t(int32_t(a[c + i]) * int32_t(wa[i]) + int32_t(b[c + i]) * int32_t(wb[i])));
            requantise(l, acc, c, count, to + c);
        }
    }
}

// ---- pooling

// Of W bytes at pixels first to end - 1 of a row.
template <int W> inline void highest_of(const uint8_t *row, int64_t pixel, int64_t first, int64_t end, uint8_t *to) {
    uint8_t found[W];
    std::memcpy(found, row + first * pixel, W);
    for (int64_t x = first + 1; x < end; x++)
        for (int i = 0; i < W; i++) found[i] = std::max(found[i], row[x * pixel + i]);
    std::memcpy(to, found, W);
}

void pool(const Layer &l, int64_t image) {
    // Value + 128 is ordered as the value is, and -infinity is 0 or, since every window holds a pixel, anything.
    static thread_local std::vector<uint8_t> highest;
    const int64_t pixel = l.conv.pixel, row = l.out_w * pixel;
    highest.resize(row);
    uint8_t *__restrict most = highest.data();
    for (int64_t y = 0; y < l.pool_h; y++) {
        // Of each column first, all channels alike, then of each window.
        const int64_t top = y * l.pool_stride - l.pool_pad;
        const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + l.pool_kernel, l.out_h);
        std::memcpy(most, pixel_of(l.conv, image, y0, 0), row);
        for (int64_t v = y0 + 1; v < y1; v++) {
            const uint8_t *__restrict from = pixel_of(l.conv, image, v, 0);
            for (int64_t c = 0; c < row; c++) most[c] = std::max(most[c], from[c]);
        }
        for (int64_t x = 0; x < l.pool_w; x++) {
            const int64_t left = x * l.pool_stride - l.pool_pad;
            const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + l.pool_kernel, l.out_w);
            uint8_t *to = pixel_of(l.out, image, y, x);
            int64_t c = 0;
            for (; c + 16 <= l.stored; c += 16) highest_of<16>(most + c, pixel, x0, x1, to + c);
            for (; c < l.stored; c += 4) highest_of<4>(most + c, pixel, x0, x1, to + c);
        }
    }
}

// ---- faults

// The events of images first to end - 1.
std::pair<int64_t, int64_t> range(const Events &events, int64_t first, int64_t end) {
    const int64_t *stop = events.image + events.count;
    return {std::lower_bound(events.image, stop, first) - events.image,
            std::lower_bound(events.image, stop, end) - events.image};
}

int64_t steps_of(const Layer &l) { return l.span * l.kernel_h * l.kernel_w; }

// What steps `first` to `end` - 1 add to one output's accumulator, where steps read channels in order.
template <int VEC>
int32_t sum_of(const uint8_t *window, const int32_t *offsets, const int8_t *row, int64_t first, int64_t end) {
#if defined(LEVEL_VNNI)
    constexpr int64_t QUADS = VEC / 4;
    __m512i sums = _mm512_setzero_si512(), weights = sums;  // the latter times 128, which features are too large by
    for (int64_t q = first * QUADS; q < end * QUADS; q += BLOCK) {
        const int64_t left = end * QUADS - q;
        const __mmask16 some = left < BLOCK ? __mmask16((1u << left) - 1) : __mmask16(0xFFFF);
        const __m512i at = _mm512_maskz_loadu_epi32(some, offsets + q);
        const __m512i x = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), some, at, window, 1);
        const __m512i w = _mm512_maskz_loadu_epi32(some, row + 4 * q);
        sums = _mm512_dpbusd_epi32(sums, x, w);
        weights = _mm512_dpbusd_epi32(weights, _mm512_set1_epi8(int8_t(ZERO)), w);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(sums, weights));
#else
    uint32_t sum = 0;
    for (int64_t s = first; s < end; s++) {
        const uint8_t *x = window + offsets[s * (VEC / 4)];
        int32_t step = 0;
        for (int v = 0; v < VEC; v++) step += (int32_t(x[v]) - ZERO) * int32_t(row[s * VEC + v]);
        sum += uint32_t(step);
    }
    return int32_t(sum);
#endif
}

// One step's sum where any channel may lie in any place.
int32_t any_step(const Layer &l, int64_t m, int64_t image, int64_t y, int64_t x, int64_t step) {
    const int64_t taps = l.kernel_h * l.kernel_w, per_group = l.channels / l.groups;
    const int64_t plane = l.first[m / l.lanes] + step / taps, tap = step % taps, group = m * l.groups / l.outputs;
    if (plane >= l.planes) return 0;
    const int64_t down = y * l.stride_y - l.pad_y + tap / l.kernel_w, right = x * l.stride_x - l.pad_x + tap % l.kernel_w;
    int32_t sum = 0;
    for (int64_t v = 0; v < l.vec; v++) {
        const int64_t slot = l.slots[plane * l.vec + v], c = slot - group * per_group;
        if (slot < 0 || c < 0 || c >= per_group) continue;
        const uint8_t *at = l.kind == PAIR ? pixel_of(slot % 2 ? l.second : l.x, image, down, right) + slot / 2
                                           : pixel_of(l.x, image, down, right) + slot;
        sum += (int32_t(*at) - ZERO) * int32_t(l.plain[(m * per_group + c) * taps + tap]);
    }
    return sum;
}

int64_t parameter_of(const Layer &l, int64_t m) {
    if (l.kind != CONVOLUTION) return m;
    const int64_t group_out = l.outputs / l.groups;
    return m / group_out * ceil_to(group_out, BLOCK) + m % group_out;
}

// Recomputes each output that is hit, flipping bits of its accumulator after the steps that the events name.
void walk(const Layer &l, int64_t first, int64_t end) {
    const auto [from, to] = range(l.mac, first, end);
    const int64_t steps = steps_of(l), plane = l.out_h * l.out_w;
    for (int64_t e = from; e < to;) {
        const int64_t image = l.mac.image[e], output = l.mac.output[e];
        const int64_t m = output / plane, y = output % plane / l.out_w, x = output % l.out_w;
        const uint8_t *window = window_of(l, image, y, x);
        const int8_t *row = l.rows + m * steps * l.vec;  // where they are in order
        const auto sum = [&](int64_t a, int64_t b) -> int32_t {
            if (l.in_order) switch (l.vec) {
                case 4: return sum_of<4>(window, l.ordered_offsets, row, a, b);
                case 8: return sum_of<8>(window, l.ordered_offsets, row, a, b);
                default: return sum_of<16>(window, l.ordered_offsets, row, a, b);
                }
            uint32_t total = 0;
            for (; a < b; a++) total += uint32_t(any_step(l, m, image, y, x, a));
            return int32_t(total);
        };
        uint32_t acc = uint32_t(l.bias[m]);
        int64_t done = 0;
        for (; e < to && l.mac.image[e] == image && l.mac.output[e] == output; e++) {
            if (l.mac.step[e] >= done) {
                acc += uint32_t(sum(done, l.mac.step[e] + 1));
                done = l.mac.step[e] + 1;
            }
            acc ^= uint32_t(1) << l.mac.bit[e];
        }
        acc += uint32_t(sum(done, steps));
        const int64_t at = parameter_of(l, m);
        pixel_of(l.conv, image, y, x)[m] = requantised(l, int32_t(acc), l.shift[at], l.added[at]);
    }
}

// Computes all outputs step by step, stopping wherever an event of the tile's outputs flips a bit.
void stepwise(const Layer &l, int64_t first, int64_t end) {
    struct Flip {
        int64_t tile, step;
        int32_t place;  // in the tile's accumulators
        int32_t sum;    // place in the panel's sums
        uint32_t mask;
    };
    static thread_local std::vector<Flip> flips;
    const auto [from, to] = range(l.mac, first, end);
    const int64_t plane = l.out_h * l.out_w, pixels = (end - first) * plane, steps = steps_of(l);
    const int64_t per_step = l.vec / 4, quads = steps * per_step;
    alignas(64) int32_t acc[8 * PANEL * BLOCK];
    const uint8_t *windows[8];
    uint8_t *outputs[8];
    flips.clear();
    const int64_t panels = (l.outputs + PANEL * BLOCK - 1) / (PANEL * BLOCK);
    const auto blocks_of = [&](int64_t panel) {
        return int(std::min<int64_t>(PANEL, (l.outputs - panel * PANEL * BLOCK + BLOCK - 1) / BLOCK));
    };
    // Tiles are counted panel by panel; none has fewer than one pixel, so `pixels` a panel are enough.
    for (int64_t e = from; e < to; e++) {
        const int64_t m = l.mac.output[e] / plane, panel = m / (PANEL * BLOCK), within = m % (PANEL * BLOCK);
        const int64_t pixel = (l.mac.image[e] - first) * plane + l.mac.output[e] % plane;
        const int blocks = blocks_of(panel), most = most_pixels(blocks);
        const int32_t place = int32_t(pixel % most * blocks * BLOCK + within);
        flips.push_back({panel * pixels + pixel / most, l.mac.step[e], place, int32_t(within), 1u << l.mac.bit[e]});
    }
    std::sort(flips.begin(), flips.end(), [](const Flip &a, const Flip &b) {
        return a.tile != b.tile ? a.tile < b.tile : a.step < b.step;
    });
    size_t f = 0;
    for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t m = panel * PANEL * BLOCK, count = std::min<int64_t>(PANEL * BLOCK, l.outputs - m);
        const int blocks = blocks_of(panel), wide = blocks * BLOCK, most = most_pixels(blocks);
        const int8_t *weights = l.ordered + m * quads * 4;
        const int32_t *sums = l.ordered_sums + m * steps;
        Walker walker(l, first);
        for (int64_t p = 0; p < pixels; p += most) {
            const int here = int(std::min<int64_t>(most, pixels - p));
            for (int i = 0; i < here; i++, walker.next()) {
                windows[i] = walker.window;
                outputs[i] = walker.output + m;
                // Until a step's sum of weights is taken off, an accumulator is too large by 128 times that.
                for (int j = 0; j < wide; j++) acc[i * wide + j] = m + j < l.outputs ? l.bias[m + j] : 0;
            }
            const Tile compute = tile_of(here, blocks);
            int64_t done = 0;
            while (f < flips.size() && flips[f].tile == panel * pixels + p / most) {
                const int64_t step = flips[f].step;
                if (step + 1 > done) {
                    compute(windows, l.ordered_offsets, done * per_step, (step + 1) * per_step, weights, acc);
                    done = step + 1;
                }
                const int32_t at = flips[f].sum;
                const uint32_t extra = uint32_t(sums[(at / BLOCK * steps + step) * BLOCK + at % BLOCK]);
                int32_t *a = acc + flips[f].place;
                *a = int32_t(((uint32_t(*a) - extra) ^ flips[f].mask) + extra);
                f++;
            }
            compute(windows, l.ordered_offsets, done * per_step, quads, weights, acc);
            for (int i = 0; i < here; i++) {
                for (int j = 0; j < wide; j++) {
                    const int32_t extra = sums[(j / BLOCK * steps + steps - 1) * BLOCK + j % BLOCK];
                    acc[i * wide + j] = int32_t(uint32_t(acc[i * wide + j]) - uint32_t(extra));
                }
                requantise(l, acc + i * wide, m, count, outputs[i]);
            }
        }
    }
}

// ---- late operand bits and stuck bits

typedef uint32_t Words __attribute__((vector_size(64)));  // one word of each of 16 lanes

Words words_at(const void *from) {
    Words w;
    std::memcpy(&w, from, sizeof w);
    return w;
}

#if defined(LEVEL_VNNI)
// Bits that have not arrived are those of the step before.
inline Words see(Words now, Words before, Words seen) {
    return (Words)_mm512_ternarylogic_epi32((__m512i)seen, (__m512i)now, (__m512i)before, 0xCA);
}
inline Words with(Words total, Words sum, Words outputs) {
    return (Words)_mm512_ternarylogic_epi32((__m512i)total, (__m512i)sum, (__m512i)outputs, 0xF8);
}
#else
inline Words see(Words now, Words before, Words seen) { return (now & seen) | (before & ~seen); }
inline Words with(Words total, Words sum, Words outputs) { return total | (sum & outputs); }
#endif

// What a register with stuck bits takes.
inline Words held(Words value, Words keep, Words set) { return (value & keep) | set; }

// The sum of a step's products; `less` is what features counted as value + 128 give too much, negated.
inline Words step_sum(const uint8_t *window, const int32_t *offsets, const int8_t *weights, int64_t stride,
                      int64_t quads, Words less) {
#if defined(LEVEL_VNNI)
    __m512i sum = (__m512i)less;
    for (int64_t q = 0; q < quads; q++) {
        int32_t four;
        std::memcpy(&four, window + offsets[q], 4);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four), _mm512_loadu_si512(weights + q * stride));
    }
    return (Words)sum;
#else
    int32_t acc[BLOCK];
    std::memcpy(acc, &less, sizeof acc);
    for (int64_t q = 0; q < quads; q++) tile<1, 1>(&window, offsets + q, 0, 1, weights + q * stride, acc);
    return words_at(acc);
#endif
}

// What the lanes' trees saw in the step before.
struct Tree {
    Words a[16], s[16];
};

// The sum of a step's products where operand bits of the tree may be late, or bits of its registers stuck.
Words tree_sum(const Layer &l, const Late &late, int64_t block, const uint8_t *window, const int32_t *offsets,
               const int8_t *weights, int64_t stride, Tree &tree) {
    typedef int32_t Signed __attribute__((vector_size(64)));
    Words level[16];
    for (int64_t v = 0; v < l.vec; v++) {
        const int32_t x = int32_t(window[offsets[v / 4] + v % 4]) - ZERO;
        const Signed w = (Signed)(words_at(weights + v / 4 * stride) << uint32_t(24 - 8 * (v % 4))) >> 24;
        level[v] = (Words)(w * x);
    }
    int64_t adder = 0;
    for (int64_t width = l.vec; width > 1; width /= 2)
        for (int64_t i = 0; i < width / 2; i++, adder++) {
            const Words a = level[2 * i], s = level[2 * i + 1];
            const Adder &bank = late.adders[adder];
            if (bank.sign) {
                Words total = {};
                if (!bank.groups) total = a + s;
                const uint32_t *masks = bank.masks + block * bank.groups * 3 * BLOCK;
                for (int64_t g = 0; g < bank.groups; g++, masks += 3 * BLOCK)
                    total = with(total,
                                 see(a, tree.a[adder], words_at(masks)) + see(s, tree.s[adder], words_at(masks + BLOCK)),
                                 words_at(masks + 2 * BLOCK));
                total = held(total, words_at(bank.keep + block * BLOCK), words_at(bank.set + block * BLOCK));
                const Words sign = words_at(bank.sign + block * BLOCK);
                level[i] = (total ^ sign) - sign;
                tree.a[adder] = a, tree.s[adder] = s;
            } else {
                level[i] = a + s;
            }
        }
    return level[0];
}

// A flip of one accumulator: which row, when in it (pixel * steps + step), and where.
struct LateFlip {
    int64_t block, row, when;
    int32_t lane;
    uint32_t mask;
};

// Rows of outputs of one block, computed together: their accumulators, and what these saw in the step before.
template <int R> struct Rows {
    Words running[R], before_a[R], before_s[R], before_bias, before_select;
    const uint8_t *windows[R];
    Tree *trees;
};

// Steps first to end - 1 of one output of each row. G: groups, or 0 if only known at run time; TREE: some of its bits
// may be late or stuck; STUCK: some of the accumulators' are.
template <int R, int G, bool TREE, bool STUCK>
void advance(const Layer &l, const Late &late, int64_t block, int64_t first, int64_t end, Rows<R> &rows) {
    const int64_t steps = steps_of(l), quads = l.vec / 4, groups = G ? G : late.groups;
    const int64_t panel = block / PANEL * PANEL, stride = std::min<int64_t>(PANEL, late.blocks - panel) * 64;
    const int8_t *weights = late.weights + panel * BLOCK * steps * l.vec + (block - panel) * 64;
    const int32_t *less = late.sums + block * steps * BLOCK;
    const uint32_t *masks = late.masks + block * groups * 5 * BLOCK;
    const Words bias = words_at(late.start + block * BLOCK), zero = {}, ones = ~zero;
    const Words keep = STUCK ? words_at(late.keep + block * BLOCK) : ones;
    const Words set = STUCK ? words_at(late.set + block * BLOCK) : zero;
    // Local, for the compiler to keep them in registers.
    Words running[R], before_a[R], before_s[R];
    for (int r = 0; r < R; r++)
        running[r] = rows.running[r], before_a[r] = rows.before_a[r], before_s[r] = rows.before_s[r];
    for (int64_t step = first; step < end; step++) {
        const int8_t *w = weights + step * quads * stride;
        const int32_t *offsets = late.offsets + step * quads;
        const Words off = words_at(less + step * BLOCK);
        Words sum[R], total[R];
        for (int r = 0; r < R; r++) {
            sum[r] = TREE ? tree_sum(l, late, block, rows.windows[r], offsets, w, stride, rows.trees[r])
                          : step_sum(rows.windows[r], offsets, w, stride, quads, off);
            total[r] = zero;
        }
        if (!groups) {
            for (int r = 0; r < R; r++) {
                running[r] = (step ? running[r] : bias) + sum[r];
                if (STUCK) running[r] = held(running[r], keep, set);
            }
            continue;
        }
        const uint32_t *m = masks;
        if (step > 1) {
            for (int64_t g = 0; g < groups; g++, m += 5 * BLOCK) {
                const Words a = words_at(m), s = words_at(m + BLOCK), outputs = words_at(m + 2 * BLOCK);
                for (int r = 0; r < R; r++)
                    total[r] = with(total[r], see(running[r], before_a[r], a) + see(sum[r], before_s[r], s), outputs);
            }
        } else {
            // The load multiplexer's select changes, and may be late.
            const Words select = step ? zero : ones;
            for (int64_t g = 0; g < groups; g++, m += 5 * BLOCK) {
                const Words a = words_at(m), s = words_at(m + BLOCK), outputs = words_at(m + 2 * BLOCK);
                const Words loaded = see(bias, rows.before_bias, words_at(m + 3 * BLOCK));
                const Words chosen = see(select, rows.before_select, words_at(m + 4 * BLOCK));
                for (int r = 0; r < R; r++) {
                    const Words operand = see(loaded, see(running[r], before_a[r], a), chosen);
                    total[r] = with(total[r], operand + see(sum[r], before_s[r], s), outputs);
                }
            }
            rows.before_bias = bias, rows.before_select = select;
        }
        for (int r = 0; r < R; r++) {
            before_a[r] = running[r], before_s[r] = sum[r];
            running[r] = STUCK ? held(total[r], keep, set) : total[r];
        }
    }
    for (int r = 0; r < R; r++)
        rows.running[r] = running[r], rows.before_a[r] = before_a[r], rows.before_s[r] = before_s[r];
}

template <int R, bool STUCK> auto advance_of(const Late &late) {
    if (late.adders) return advance<R, 0, true, STUCK>;
    switch (late.groups) {
    case 1: return advance<R, 1, false, STUCK>;
    case 2: return advance<R, 2, false, STUCK>;
    case 3: return advance<R, 3, false, STUCK>;
    default: return advance<R, 0, false, STUCK>;
    }
}

// R rows of outputs of one block; each begins with a history of zeros. Rows are counted through all images.
template <int R>
void late_rows(const Layer &l, const Late &late, int64_t block, int64_t image, int64_t row, const LateFlip *flip,
               const LateFlip *stop) {
    const int64_t steps = steps_of(l);
    const auto go = late.keep ? advance_of<R, true>(late) : advance_of<R, false>(late);
    const int32_t *outputs = late.rows + block * BLOCK;
    static thread_local std::vector<Tree> trees;
    trees.assign(late.adders ? R : 0, Tree());
    Rows<R> rows = {};
    rows.trees = trees.data();
    Layer own = l;
    own.shift = late.shift, own.added = late.added;
    for (int64_t x = 0; x < l.out_w; x++) {
        for (int r = 0; r < R; r++) {
            const int64_t y = row + r;
            rows.windows[r] = pixel_of(late.x, image + y / l.out_h, y % l.out_h * l.stride_y - l.pad_y,
                                       x * l.stride_x - l.pad_x) + late.plane[block];
        }
        int64_t done = 0;
        for (; flip < stop && flip->when < (x + 1) * steps; flip++) {
            const int64_t after = flip->when - x * steps + 1;
            if (after > done) go(l, late, block, done, after, rows);
            done = after;
            uint32_t lanes[BLOCK];
            std::memcpy(lanes, &rows.running[flip->row - row], sizeof lanes);
            lanes[flip->lane] ^= flip->mask;
            if (late.keep) {
                const int64_t at = block * BLOCK + flip->lane;
                lanes[flip->lane] = (lanes[flip->lane] & late.keep[at]) | late.set[at];
            }
            rows.running[flip->row - row] = words_at(lanes);
        }
        if (done < steps) go(l, late, block, done, steps, rows);
        for (int r = 0; r < R; r++) {
            int32_t acc[BLOCK];
            std::memcpy(acc, &rows.running[r], sizeof acc);
            const int64_t y = row + r;
            uint8_t *to = pixel_of(l.conv, image + y / l.out_h, y % l.out_h, x);
            if (late.count[block]) {
                requantise(own, acc, block * BLOCK, late.count[block], to + late.channel[block]);
                continue;
            }
            uint8_t made[BLOCK];
            requantise(own, acc, block * BLOCK, BLOCK, made);
            for (int i = 0; i < BLOCK; i++)
                if (outputs[i] >= 0) to[outputs[i]] = made[i];
        }
    }
}

void conditioned(const Layer &l, int64_t first, int64_t end) {
    constexpr int TOGETHER = 4;
    const Late &late = *l.late;
    if (late.run_count)
        for (int64_t image = first; image < end; image++) gather(late.x, late.sources, late.runs, late.run_count, l, image);
    static thread_local std::vector<LateFlip> flips;
    flips.clear();
    const int64_t rows = (end - first) * l.out_h, steps = steps_of(l);
    const auto [from, to] = range(l.mac, first, end);
    for (int64_t e = from; e < to; e++) {
        const int64_t output = l.mac.output[e], m = output / (l.out_h * l.out_w);
        const int32_t place = late.place[m];
        if (place < 0) continue;
        const int64_t row = (l.mac.image[e] - first) * l.out_h + output / l.out_w % l.out_h;
        flips.push_back({place / BLOCK, row, output % l.out_w * steps + l.mac.step[e], place % BLOCK,
                         uint32_t(1) << l.mac.bit[e]});
    }
    // Rows that are computed together meet their flips in the order of time.
    const int64_t whole = rows / TOGETHER * TOGETHER;
    const auto turn = [&](int64_t row) { return row < whole ? row / TOGETHER : row; };
    std::sort(flips.begin(), flips.end(), [&](const LateFlip &a, const LateFlip &b) {
        if (a.block != b.block) return a.block < b.block;
        if (turn(a.row) != turn(b.row)) return a.row < b.row;
        return a.when < b.when;
    });
    const LateFlip *flip = flips.data(), *stop = flip + flips.size();
    for (int64_t block = 0; block < late.blocks; block++)
        for (int64_t row = 0; row < rows;) {
            const int together = row < whole ? TOGETHER : 1;
            const LateFlip *mine = flip;
            while (flip < stop && flip->block == block && flip->row < row + together) flip++;
            if (together == TOGETHER)
                late_rows<TOGETHER>(l, late, block, first, row, mine, flip);
            else
                late_rows<1>(l, late, block, first, row, mine, flip);
            row += together;
        }
}

void flip_features(const Layer &l, int64_t first, int64_t end) {
    const auto [from, to] = range(l.feature, first, end);
    const int64_t height = l.pool_kernel ? l.pool_h : l.out_h, width = l.pool_kernel ? l.pool_w : l.out_w;
    for (int64_t e = from; e < to; e++) {
        const int64_t output = l.feature.output[e], c = output / (height * width);
        pixel_of(l.out, l.feature.image[e], output / width % height, output % width)[c] ^= uint8_t(1 << l.feature.bit[e]);
    }
}

// ---- layers

void compute(const Layer &l, int64_t first, int64_t end) {
    if (l.run_count)
        for (int64_t image = first; image < end; image++) gather(l.x, l.sources, l.runs, l.run_count, l, image);
    if (l.late && !l.late->partial) {
        // All are computed below.
    } else if (l.mac.count && l.ordered) {
        stepwise(l, first, end);
    } else {
        if (l.kind == DEPTHWISE)
            depthwise(l, first, end);
        else if (l.kind == PAIR)
            add(l, first, end);
        else
            convolve(l, first, end);
        if (l.mac.count) walk(l, first, end);
    }
    if (l.late) conditioned(l, first, end);
    if (l.pool_kernel)
        for (int64_t image = first; image < end; image++) pool(l, image);
    if (l.feature.count) flip_features(l, first, end);
}

// ---- backwards

// Rows of gradients of pooled pairs, 2 x 2 values each, that do not overlap: each to the first largest of its four.
void quarter(const int8_t *__restrict top, const int8_t *__restrict bottom, const float *__restrict grad, int64_t count,
             int low, int upper, float *__restrict over, float *__restrict under) {
    int64_t x = 0;
#if defined(LEVEL_VNNI)
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const __m256i least = _mm256_set1_epi16(int16_t(low)), limit = _mm256_set1_epi16(int16_t(upper));
    for (; x < count; x += BLOCK) {
        // Each 16 bits of a row are the two values of one window.
        const int64_t left = std::min<int64_t>(BLOCK, count - x);
        const __mmask16 some = __mmask16((1u << left) - 1);
        const __mmask16 front = __mmask16(left >= 8 ? 0xFFFF : (1u << 2 * left) - 1);
        const __mmask16 back = __mmask16(left <= 8 ? 0 : (1u << (2 * left - 16)) - 1);
        const __m256i upside = _mm256_maskz_loadu_epi16(some, top + 2 * x), down = _mm256_maskz_loadu_epi16(some, bottom + 2 * x);
        const __m256i a = _mm256_srai_epi16(_mm256_slli_epi16(upside, 8), 8), b = _mm256_srai_epi16(upside, 8);
        const __m256i c = _mm256_srai_epi16(_mm256_slli_epi16(down, 8), 8), d = _mm256_srai_epi16(down, 8);
        const __m256i above = _mm256_max_epi16(a, b), most = _mm256_max_epi16(above, _mm256_max_epi16(c, d));
        const __mmask16 passes = _mm256_cmpgt_epi16_mask(most, least) & _mm256_cmplt_epi16_mask(most, limit);
        const __m512 passed = _mm512_maskz_add_ps(passes, _mm512_maskz_loadu_ps(some, grad + x), _mm512_setzero_ps());
        const __mmask16 is_a = _mm256_cmpeq_epi16_mask(a, most), is_b = _mm256_cmpeq_epi16_mask(b, most) & ~is_a;
        const __mmask16 is_c = _mm256_cmpeq_epi16_mask(c, most) & ~is_a & ~is_b, is_d = ~(is_a | is_b | is_c);
        const __m512 at_a = _mm512_maskz_mov_ps(is_a, passed), at_b = _mm512_maskz_mov_ps(is_b, passed);
        const __m512 at_c = _mm512_maskz_mov_ps(is_c, passed), at_d = _mm512_maskz_mov_ps(is_d, passed);
        _mm512_mask_storeu_ps(over + 2 * x, front, _mm512_permutex2var_ps(at_a, first, at_b));
        _mm512_mask_storeu_ps(over + 2 * x + BLOCK, back, _mm512_permutex2var_ps(at_a, second, at_b));
        _mm512_mask_storeu_ps(under + 2 * x, front, _mm512_permutex2var_ps(at_c, first, at_d));
        _mm512_mask_storeu_ps(under + 2 * x + BLOCK, back, _mm512_permutex2var_ps(at_c, second, at_d));
    }
#endif
    for (; x < count; x++) {
        const int a = top[2 * x], b = top[2 * x + 1], c = bottom[2 * x], d = bottom[2 * x + 1];
        const int above = std::max(a, b), below = std::max(c, d), most = std::max(above, below);
        const float passed = (most > low) & (most < upper) ? 0.0f + grad[x] : 0.0f;
        over[2 * x] = a == most ? passed : 0.0f;
        over[2 * x + 1] = (a < b) & (b == most) ? passed : 0.0f;
        under[2 * x] = (above < c) & (c == most) ? passed : 0.0f;
        under[2 * x + 1] = (above < d) & (c < d) ? passed : 0.0f;
    }
}

}  // namespace

extern "C" {

// Images first to end - 1 through layers that follow each other: runs of layers image by image, others all at once.
void NAMED(run)(const Layer *layers, int64_t count, int64_t first, int64_t end) {
    for (int64_t at = 0; at < count;) {
        if (layers[at].batched) {
            compute(layers[at++], first, end);
            continue;
        }
        int64_t stop = at;
        while (stop < count && !layers[stop].batched) stop++;
        for (int64_t image = first; image < end; image++)
            for (int64_t i = at; i < stop; i++) compute(layers[i], image, image + 1);
        at = stop;
    }
}

// OIHW weights of one group, shape (outputs, channels, taps), to [panel][quad][block][16][4], and the rows' sums.
// `per_step` > 0: quads in the order of steps of that many quads, otherwise tap by tap.
void NAMED(pack)(const int8_t *weights, int64_t outputs, int64_t channels, int64_t taps, int64_t per_step,
                 int8_t *packed, int32_t *sums) {
    const int64_t quads = (channels + 3) / 4;
    const int64_t planes = per_step ? (quads + per_step - 1) / per_step : 1, width = per_step ? per_step : quads;
    const int64_t row = channels * taps, total = planes * width * taps;
    std::memset(packed, 0, ceil_to(outputs, BLOCK) * total * 4);
    for (int64_t m = 0; m < outputs; m++) {
        uint32_t sum = 0;
        for (int64_t i = 0; i < row; i++) sum += uint32_t(int32_t(weights[m * row + i]));
        sums[m] = int32_t(sum);
    }
    for (int64_t m = 0; m < outputs; m += BLOCK) {
        const int64_t panel = m / (PANEL * BLOCK) * PANEL * BLOCK, block = (m - panel) / BLOCK;
        const int64_t blocks = std::min<int64_t>(PANEL, (outputs - panel + BLOCK - 1) / BLOCK);
        const int64_t rows = std::min<int64_t>(BLOCK, outputs - m);
        int8_t *to = packed + panel * total * 4 + block * 64;
        const int8_t *from = weights + m * row;
        for (int64_t z = 0; z < planes; z++)
            for (int64_t c = 0; c < width; c++) {
                const int64_t channel = (z * width + c) * 4, inside = std::min<int64_t>(4, channels - channel);
                if (inside <= 0) continue;
                for (int64_t t = 0; t < taps; t++) {
                    const int64_t quad = per_step ? (z * taps + t) * width + c : t * width + c;
                    int8_t *line = to + quad * blocks * 64;
                    const int8_t *in = from + channel * taps + t;
                    if (inside == 4 && taps == 1)
                        for (int64_t i = 0; i < rows; i++) std::memcpy(line + i * 4, in + i * row, 4);
                    else if (inside == 4)
                        for (int64_t i = 0; i < rows; i++, line += 4, in += row) {
                            line[0] = in[0], line[1] = in[taps], line[2] = in[2 * taps], line[3] = in[3 * taps];
                        }
                    else
                        for (int64_t i = 0; i < rows; i++)
                            for (int64_t j = 0; j < inside; j++) line[i * 4 + j] = in[i * row + j * taps];
                }
            }
    }
}

// 128 times the sum of the weights of all steps up to each, [block][step][16], from weights packed in their order.
void NAMED(prefix_sums)(const int8_t *packed, int64_t outputs, int64_t steps, int64_t per_step, int32_t *sums) {
    const int64_t quads = steps * per_step;
    for (int64_t m = 0; m < outputs; m += BLOCK) {
        const int64_t panel = m / (PANEL * BLOCK) * PANEL * BLOCK, block = (m - panel) / BLOCK;
        const int64_t blocks = std::min<int64_t>(PANEL, (outputs - panel + BLOCK - 1) / BLOCK);
        int32_t total[BLOCK] = {};
        for (int64_t s = 0; s < steps; s++) {
            for (int64_t q = s * per_step; q < (s + 1) * per_step; q++) {
                const int8_t *line = packed + panel * quads * 4 + (q * blocks + block) * 64;
                for (int i = 0; i < BLOCK; i++)
                    for (int j = 0; j < 4; j++) total[i] += 128 * int32_t(line[i * 4 + j]);
            }
            std::memcpy(sums + (m / BLOCK * steps + s) * BLOCK, total, sizeof(total));
        }
    }
}

// int8 NCHW images to a feature map.
void NAMED(load)(const int8_t *from, int64_t images, int64_t channels, int64_t height, int64_t width, const Tensor *to) {
    for (int64_t n = 0; n < images; n++)
        for (int64_t y = 0; y < height; y++)
            for (int64_t c = 0; c < channels; c++) {
                const int8_t *in = from + ((n * channels + c) * height + y) * width;
                uint8_t *out = pixel_of(*to, n, y, 0) + c;
                for (int64_t x = 0; x < width; x++) out[x * to->pixel] = uint8_t(in[x] + ZERO);
            }
}

// A feature map to int8 NCHW images.
void NAMED(store)(const Tensor *from, int64_t images, int64_t channels, int64_t height, int64_t width, int8_t *to) {
    for (int64_t n = 0; n < images; n++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t y = 0; y < height; y++) {
                const uint8_t *in = pixel_of(*from, n, y, 0) + c;
                int8_t *out = to + ((n * channels + c) * height + y) * width;
                for (int64_t x = 0; x < width; x++) out[x] = int8_t(in[x * from->pixel] - ZERO);
            }
}

// floor(x * 2**frac + 0.5), saturating at -128 and 127, of rows that have a scale (2**frac) each; returns whether all
// values are finite.
int NAMED(quantise)(const float *from, int64_t rows, int64_t length, const double *scale, int8_t *to) {
    int infinite = 0;
    for (int64_t r = 0; r < rows; r++, from += length, to += length) {
        if (scale[r] < 0x1p-100 || scale[r] > 0x1p100) {
            for (int64_t i = 0; i < length; i++) {
                const double scaled = double(from[i]) * scale[r] + 0.5;
                infinite |= !(scaled - scaled == 0);
                // Truncation is the floor of what is not negative.
                const double kept = std::min(std::max(scaled, -128.0), 127.5) + 128.0;
                to[i] = int8_t(int32_t(kept) - 128);
            }
            continue;
        }
        const float s = float(scale[r]);
        for (int64_t i = 0; i < length; i++) {
            infinite |= !(from[i] - from[i] == 0);
            const float scaled = std::min(std::max(from[i] * s, -129.0f), 128.0f);
            // Adding a half would round; what lies above the integer below is exact.
            const int32_t whole = int32_t(scaled), below = whole - (scaled < float(whole));
            const int32_t value = below + (scaled - float(below) >= 0.5f);
            to[i] = int8_t(std::min(std::max(value, -128), 127));
        }
    }
    return !infinite;
}

// Integers at a scale to floats.
void NAMED(dequantise)(const int8_t *from, int64_t count, float scale, float *to) {
    for (int64_t i = 0; i < count; i++) to[i] = float(from[i]) * scale;
}

// The same as `quantise`, of a layer's weights, and its biases at scales of their own to 32 bits, saturating.
int NAMED(quantise_layer)(const float *weights, int64_t rows, int64_t length, const double *scale, int8_t *to,
                          const float *biases, const double *bias_scale, int32_t *biases_to) {
    int infinite = !NAMED(quantise)(weights, rows, length, scale, to);
    for (int64_t r = 0; r < rows; r++) {
        const double scaled = std::floor(double(biases[r]) * bias_scale[r] + 0.5);
        infinite |= !(biases[r] - biases[r] == 0);
        biases_to[r] = int32_t(std::min(std::max(scaled, -2147483648.0), 2147483647.0));
    }
    return !infinite;
}

// Gradient of max-pooled planes, [planes][out_h][out_w], to that of what they were chosen from, [planes][in_h][in_w]:
// each goes to the first largest value of its window, if that lies between the bounds.
void NAMED(unpool)(const int8_t *values, const float *grad, int64_t planes, int64_t in_h, int64_t in_w, int64_t kernel,
                   int64_t stride, int64_t pad, int64_t out_h, int64_t out_w, int64_t low, int64_t upper, float *to) {
    const bool quarters = kernel == 2 && stride == 2 && !pad && 2 * out_h <= in_h && 2 * out_w <= in_w;
    if (!quarters || 2 * out_h < in_h || 2 * out_w < in_w) std::memset(to, 0, planes * in_h * in_w * sizeof(float));
    if (quarters) {
        for (int64_t p = 0; p < planes; p++, values += in_h * in_w, to += in_h * in_w)
            for (int64_t y = 0; y < out_h; y++, grad += out_w)
                quarter(values + 2 * y * in_w, values + (2 * y + 1) * in_w, grad, out_w, int(low), int(upper),
                        to + 2 * y * in_w, to + (2 * y + 1) * in_w);
        return;
    }
    for (int64_t p = 0; p < planes; p++, values += in_h * in_w, to += in_h * in_w)
        for (int64_t y = 0; y < out_h; y++) {
            const int64_t top = y * stride - pad;
            const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + kernel, in_h);
            for (int64_t x = 0; x < out_w; x++, grad++) {
                const int64_t left = x * stride - pad;
                const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + kernel, in_w);
                int64_t chosen = y0 * in_w + x0;
                for (int64_t v = y0; v < y1; v++)
                    for (int64_t u = x0; u < x1; u++)
                        if (values[v * in_w + u] > values[chosen]) chosen = v * in_w + u;
                if (values[chosen] > low && values[chosen] < upper) to[chosen] += *grad;
            }
        }
}

// Gradient that passes where a value lies between the bounds, with a product's bits elsewhere.
void NAMED(pass)(const int8_t *values, const float *grad, int64_t count, int64_t low, int64_t upper, float *to) {
    const int32_t least = int32_t(low), most = int32_t(upper);
    for (int64_t i = 0; i < count; i++) to[i] = grad[i] * float(int32_t(values[i] > least) & int32_t(values[i] < most));
}
}
