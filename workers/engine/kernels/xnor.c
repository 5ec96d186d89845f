/* Products of vectors of signs: XNOR and popcount.
 *
 *     dot(a, b) = n - 2 * popcount(a xor b)        a, b in {-1, 1}^n, a bit is 1 where the sign is 1
 *
 * Rows are packed in 64-bit words, the first element in the lowest bit; bits beyond n are 0 in every row, where they
 * cancel. The same results on every CPU: AVX2 where there is any, else the popcnt instruction, else plain arithmetic.
 * No function allocates; callers check shapes.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "xnor.h"

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#include <immintrin.h>
#endif

/* Differing bits of a row with each of `count` rows that lie one after another. */
typedef void (*differ)(const uint64_t *a, const uint64_t *rows, size_t count, size_t words, int32_t *out);

static int32_t ones_plain(uint64_t x) {
    x -= (x >> 1) & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (int32_t)((x * 0x0101010101010101u) >> 56);
}

static void differ_plain(const uint64_t *a, const uint64_t *rows, size_t count, size_t words, int32_t *out) {
    for (size_t row = 0; row < count; row++, rows += words) {
        int32_t total = 0;
        for (size_t i = 0; i < words; i++) total += ones_plain(a[i] ^ rows[i]);
        out[row] = total;
    }
}

#ifdef X86

__attribute__((target("popcnt")))
static int64_t ones_popcnt(const uint64_t *a, const uint64_t *b, size_t words) {
    int64_t first = 0, second = 0;
    size_t i = 0;
    for (; i + 2 <= words; i += 2) {
        first += __builtin_popcountll(a[i] ^ b[i]);
        second += __builtin_popcountll(a[i + 1] ^ b[i + 1]);
    }
    if (i < words) first += __builtin_popcountll(a[i] ^ b[i]);
    return first + second;
}

__attribute__((target("popcnt")))
static void differ_popcnt(const uint64_t *a, const uint64_t *rows, size_t count, size_t words, int32_t *out) {
    for (size_t row = 0; row < count; row++, rows += words) out[row] = (int32_t)ones_popcnt(a, rows, words);
}

/* Ones of each byte by two lookups of four bits (Mula, Kurz, Lemire: Faster Population Counts Using AVX2, 2016). */
__attribute__((target("avx2")))
static __m256i ones_of_bytes(__m256i x, __m256i table, __m256i low) {
    __m256i one = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
    __m256i other = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
    return _mm256_add_epi8(one, other);
}

__attribute__((target("avx2")))
static int64_t sum_of_words(__m256i x) {
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

#define AT_ONCE 4        /* rows that share what is loaded of a */
#define BYTES_HOLD 31    /* times 8 ones that a byte adds up without overflow */

__attribute__((target("avx2,popcnt")))
static void differ_avx2_four(const uint64_t *a, const uint64_t *rows, size_t words, int32_t *out) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    __m256i total[AT_ONCE] = {zero, zero, zero, zero};
    size_t i = 0;
    while (i + 4 <= words) {
        __m256i bytes[AT_ONCE] = {zero, zero, zero, zero};
        size_t end = i + 4 * BYTES_HOLD < words ? i + 4 * BYTES_HOLD : words;
        for (; i + 4 <= end; i += 4) {
            __m256i x = _mm256_loadu_si256((const __m256i *)(a + i));
            for (int row = 0; row < AT_ONCE; row++) {
                __m256i y = _mm256_loadu_si256((const __m256i *)(rows + row * words + i));
                bytes[row] = _mm256_add_epi8(bytes[row], ones_of_bytes(_mm256_xor_si256(x, y), table, low));
            }
        }
        for (int row = 0; row < AT_ONCE; row++)
            total[row] = _mm256_add_epi64(total[row], _mm256_sad_epu8(bytes[row], zero));
    }
    for (int row = 0; row < AT_ONCE; row++)
        out[row] = (int32_t)(sum_of_words(total[row]) + ones_popcnt(a + i, rows + row * words + i, words - i));
}

#define SHORT 32         /* words below which popcnt is the faster, measured on Zen */

__attribute__((target("avx2,popcnt")))
static void differ_avx2(const uint64_t *a, const uint64_t *rows, size_t count, size_t words, int32_t *out) {
    size_t row = 0;
    if (words >= SHORT)
        for (; row + AT_ONCE <= count; row += AT_ONCE) differ_avx2_four(a, rows + row * words, words, out + row);
    differ_popcnt(a, rows + row * words, count - row, words, out + row);
}

#endif

enum { PLAIN = 0, POPCNT = 1, AVX2 = 2 };

/* The best way this CPU knows. */
int xnor_best(void) {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) return AVX2;
    if (__builtin_cpu_supports("popcnt")) return POPCNT;
#endif
    return PLAIN;
}

static differ chosen(int way) {
#ifdef X86
    if (way == AVX2) return differ_avx2;
    if (way == POPCNT) return differ_popcnt;
#endif
    (void)way;
    return differ_plain;
}

/* Signs of up to 64 floats; 1 where x >= 0, also for -0. NaN is -1. */
static uint64_t signs_plain(const float *x, size_t bits) {
    uint64_t found = 0;
    for (size_t bit = 0; bit < bits; bit++) found |= (uint64_t)(x[bit] >= 0) << bit;
    return found;
}

#ifdef X86
__attribute__((target("avx2")))
static uint64_t signs_avx2(const float *x) {
    uint64_t found = 0;
    for (int part = 0; part < 8; part++) {
        __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * part), _mm256_setzero_ps(), _CMP_GE_OQ);
        found |= (uint64_t)(uint8_t)_mm256_movemask_ps(above) << (8 * part);
    }
    return found;
}
#endif

static uint64_t signs(int way, const float *x, size_t bits) {
#ifdef X86
    if (way == AVX2 && bits == 64) return signs_avx2(x);
#endif
    (void)way;
    return signs_plain(x, bits);
}

/* Floats [rows, n] as words of signs [rows, words]. */
void xnor_pack(int way, const float *x, size_t rows, size_t n, size_t words, uint64_t *out) {
    for (size_t row = 0; row < rows; row++, x += n, out += words)
        for (size_t word = 0; word < words; word++) {
            size_t first = 64 * word, bits = n - first < 64 ? n - first : 64;
            out[word] = signs(way, x + first, bits);
        }
}

/* a [m, words], b [k, words] -> out [m, k]: the product of each row with each row, of n elements. */
void xnor_matmul(int way, const uint64_t *a, const uint64_t *b, size_t m, size_t k, size_t words, int32_t n,
                 int32_t *out) {
    differ with = chosen(way);
    for (size_t row = 0; row < m; row++, a += words, out += k) {
        with(a, b, k, words, out);
        for (size_t i = 0; i < k; i++) out[i] = n - 2 * out[i];
    }
}

/* What a filter meets at one place, as a row; outside of the image every sign is 1. */
static void gather(const convolution *c, const uint64_t *image, const uint64_t *ones, size_t y, size_t x,
                   uint64_t *row) {
    for (size_t i = 0; i < c->kernel_height; i++)
        for (size_t j = 0; j < c->kernel_width; j++, row += c->words) {
            size_t at_y = y * c->stride_height + i - c->pad_top, at_x = x * c->stride_width + j - c->pad_left;
            int inside = at_y < c->height && at_x < c->width;    /* below 0 wraps around to above */
            const uint64_t *from = inside ? image + (at_y * c->width + at_x) * c->words : ones;
            for (size_t word = 0; word < c->words; word++) row[word] = from[word];
        }
}

/* images [count, height, width, words], filters [filters, kernel_height, kernel_width, words]
 * -> out [count, out_height, out_width, filters]. scratch: the words of one filter; ones: of one pixel. */
void xnor_convolve(int way, const convolution *c, const uint64_t *images, size_t count, const uint64_t *filters,
                   const uint64_t *ones, uint64_t *scratch, int32_t *out) {
    differ with = chosen(way);
    size_t row = c->kernel_height * c->kernel_width * c->words;
    int32_t n = (int32_t)(c->kernel_height * c->kernel_width) * c->channels;
    for (size_t image = 0; image < count; image++, images += c->height * c->width * c->words)
        for (size_t y = 0; y < c->out_height; y++)
            for (size_t x = 0; x < c->out_width; x++, out += c->filters) {
                gather(c, images, ones, y, x, scratch);
                with(scratch, filters, c->filters, row, out);
                for (size_t i = 0; i < c->filters; i++) out[i] = n - 2 * out[i];
            }
}

/* A row of n signs of 1. */
void xnor_ones(size_t n, uint64_t *out) {
    for (size_t word = 0; 64 * word < n; word++) {
        size_t bits = n - 64 * word < 64 ? n - 64 * word : 64;
        out[word] = ~(uint64_t)0 >> (64 - bits);
    }
}

/* Floats [channels, pixels] as words of signs [pixels, words]. */
void xnor_pack_channels(const float *x, size_t channels, size_t pixels, size_t words, uint64_t *out) {
    memset(out, 0, pixels * words * sizeof *out);
    for (size_t channel = 0; channel < channels; channel++, x += pixels) {
        uint64_t *to = out + channel / 64;
        size_t bit = channel % 64;
        for (size_t pixel = 0; pixel < pixels; pixel++, to += words) *to |= (uint64_t)(x[pixel] >= 0) << bit;
    }
}

/* Sums [rows, filters] as floats in their place, scaled and shifted: the float is rounded after each, as apart they would be. */
void xnor_scale(int32_t *sums, size_t rows, size_t filters, const float *scale, const float *bias) {
    for (size_t row = 0; row < rows; row++, sums += filters)
        for (size_t i = 0; i < filters; i++) {
            float y = (float)sums[i] * scale[i] + bias[i];
            memcpy(sums + i, &y, sizeof y);
        }
}

/* Sums [pixels, filters] as floats [filters, pixels], scaled and shifted. */
void xnor_scale_channels(const int32_t *sums, size_t pixels, size_t filters, const float *scale, const float *bias,
                         float *out) {
    for (size_t i = 0; i < filters; i++)
        for (size_t pixel = 0; pixel < pixels; pixel++) *out++ = (float)sums[pixel * filters + i] * scale[i] + bias[i];
}
