/* The encoder in integers: uint8 frames of 64x64 RGB in, float32 latents out, in one call.
 *
 * A network is a chain of convolutions (4x4, stride 2, padding 1) and one linear layer, its head.
 * A convolution adds up products of uint8 inputs and int8 weights in int32, and its result becomes the
 * next input: max(sum, 0) in float32, times a multiplier, cut off at 255 and rounded to the nearest integer,
 * halves to even. What the head reads has more bits: it is cut off at 1023, and the head's weights are int16.
 * No sum overflows (latent_obs/encoders/quantise.py sees to that). Sums of integers do not depend on their
 * order, and each float32 operation above is one that IEEE 754 rounds in one way only, so every path
 * below, on every CPU, gives the same bits.
 *
 * What equals the background is not computed again: where the pixels under an output are those of a fixed
 * frame, the output is that frame's, which is known.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SIDE 64                     /* width and height of a frame */
#define FRAME (SIDE * SIDE * 3)     /* numbers in it */
#define MOST_LAYERS 6               /* a convolution halves the side */
#define GROUP 16                    /* channels are padded to a multiple of this */
#define HEAD_GROUP 32               /* and outputs of the head to a multiple of this */
#define TOP 255                     /* the largest input of a convolution */
#define HEAD_TOP 1023               /* and of the head */
#define LITTLE (1 << 22)            /* multiplications of a call, below which it takes the light path */

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Inputs and outputs of layers are square pictures, channels last. All but the last output have a
 * border of zeros, one pixel wide, for the padding of the next convolution. */
typedef struct {
    int side, before, after;      /* of the output; channels of the input and of the output, padded */
    int last;                     /* 1: the output goes to the head */
    const void *weight;           /* as the path wants it */
    const int32_t *bias;
    const float *multiplier;
    void *background;             /* its output for the background frame */
    size_t bytes;                 /* of its output */
} Layer;

/* Which inputs or outputs of a layer differ from the background's: a bit for each column, a word for each row. */
typedef struct {
    uint64_t row[SIDE];
} Mask;

/* What a call writes on. Between frames pictures are the background's, of which a frame changes only what differs. */
typedef struct {
    Mask mask[MOST_LAYERS + 1];     /* of the frame and of each layer's output */
    void *picture[MOST_LAYERS + 1]; /* these themselves */
    int16_t *differences;           /* from the background in what the head reads, position after position */
    int *where;                     /* these positions */
    int32_t *sums;                  /* of the head */
    void *memory;
} Workspace;

typedef struct Path Path;

typedef struct {
    const Path *path, *light;     /* for much and for little work */
    int depth, positions, features, outputs, padded_outputs; /* `features` at each of `positions` */
    Layer layer[MOST_LAYERS];
    const int16_t *head;
    int32_t *head_sums;           /* those of the background frame */
    const double *scale, *offset; /* sums to latents */
    const uint8_t *background;    /* the frame */
    Workspace *spare;             /* for the next call; NULL while one has it */
    void *memory;
} Network;

/* One way of computing. The functions come from _encode_path.h. */
struct Path {
    const char *name;
    const char *light;     /* the path that lays out memory alike and leaves the clock alone, or NULL */
    int (*supported)(void);
    int step;              /* inputs that are multiplied together */
    size_t input, weight;  /* bytes of an input and of a convolution's weight */
    int head_step;
    void (*pad)(const uint8_t *frame, const Mask *mask, void *padded);
    void (*convolve)(const Layer *layer, const void *in, void *out, const Mask *mask);
    void (*head)(const Network *network, const int16_t *differences, const int *where, int count,
                 int32_t *sums);
};

/* max(sum, 0) * multiplier, at most `top`, rounded to the nearest integer, halves to even.
 *
 * Without a branch, which compilers would keep instead of vectorising: x & (x >> 31) is min(x, 0). The bits of
 * floats that are not negative are in the order of the floats, so the minimum with `top` is one of integers; it
 * stands between product and sum, so the two are never fused. Adding 2^23 rounds and leaves the integer in the
 * low bits. */
INLINE uint32_t
requantised(int32_t sum, float multiplier, float top)
{
    float value = (float)(sum & ~(sum >> 31)) * multiplier;
    int32_t bits, most, above;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&most, &top, sizeof most);
    above = bits - most;
    bits = most + (above & (above >> 31));
    memcpy(&value, &bits, sizeof bits);
    value += 8388608.0f;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0xffff;
}

/* Turn the sums of GROUP channels, of which `channel` is the first, into outputs of `bytes` bytes each (of the
 * last layer 2) and put them at the index `to`. */
INLINE void
requantise(const int32_t *sums, const Layer *layer, int channel, size_t bytes, void *out, int to)
{
    const float *multiplier = layer->multiplier + channel;
    if (layer->last || bytes == 2)
#if defined(__GNUC__)
#pragma GCC unroll 1 /* unrolled, it is not vectorised */
#endif
        for (int c = 0; c < GROUP; c++)
            ((int16_t *)out)[to + c] = (int16_t)requantised(sums[c], multiplier[c], layer->last ? HEAD_TOP : TOP);
    else
#if defined(__GNUC__)
#pragma GCC unroll 1
#endif
        for (int c = 0; c < GROUP; c++)
            ((uint8_t *)out)[to + c] = (uint8_t)requantised(sums[c], multiplier[c], TOP);
}

static int
always(void)
{
    return 1;
}

/* Any CPU: loops that the compiler vectorises with what every CPU of its target has, such as NEON. */
typedef struct {
    int32_t of[16];
} Sixteen;

INLINE void
add_plain(Sixteen *sums, int16_t input, const int16_t *weight)
{
    for (int i = 0; i < 16; i++)
        sums->of[i] += (int32_t)input * weight[i];
}

#define NAME(function) plain_##function
#define TARGET
#define Input int16_t
#define Weight int16_t
#define STEP 1
#define HEAD_STEP 1
#define LANES 16
#define SUMS 2
#define MOST_VECTORS 1
#define Sums Sixteen
#define Inputs int16_t
#define ADD(sums, input, weight) add_plain(&(sums), input, weight)
#define ADD_HEAD ADD
#define REQUANTISE requantise
#include "_encode_path.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* AVX2 has no exact product of uint8 and int8, so both are widened to int16 and multiplied in pairs. */
#define NAME(function) avx2_##function
#define TARGET __attribute__((target("avx2")))
#define Input int16_t
#define Weight int16_t
#define STEP 2
#define HEAD_STEP 2
#define LANES 8
#define SUMS 8
#define MOST_VECTORS 2
#define Sums __m256i
#define Inputs int32_t
#define ADD(sums, input, weight)                                              \
    ((sums) = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_set1_epi32(input), \
                                                       _mm256_loadu_si256((const void *)(weight)))))
#define ADD_HEAD ADD
#define REQUANTISE requantise
#include "_encode_path.h"

static int
has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

/* VNNI multiplies uint8 and int8 in fours, exactly. */
#define NAME(function) avx512_vnni_##function
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

/* What requantise() does, in a third of the instructions that compilers make of it. */
TARGET INLINE void
requantise_avx512(const int32_t *sums, const Layer *layer, int channel, size_t Py_UNUSED(bytes), void *out, int to)
{
    const float *multiplier = layer->multiplier + channel;
    __m512 values = _mm512_cvtepi32_ps(_mm512_max_epi32(_mm512_loadu_si512(sums), _mm512_setzero_si512()));
    values = _mm512_mul_ps(values, _mm512_loadu_ps(multiplier));
    values = _mm512_min_ps(values, _mm512_set1_ps(layer->last ? HEAD_TOP : TOP));
    __m512i rounded = _mm512_cvt_roundps_epi32(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (layer->last)
        _mm256_storeu_si256((void *)((int16_t *)out + to), _mm512_cvtepi32_epi16(rounded));
    else
        _mm_storeu_si128((void *)((uint8_t *)out + to), _mm512_cvtepi32_epi8(rounded));
}

#define Input uint8_t
#define Weight int8_t
#define STEP 4
#define HEAD_STEP 2
#define LANES 16
#define SUMS 16
#define MOST_VECTORS 2
#define Sums __m512i
#define Inputs int32_t
#define ADD(sums, input, weight) \
    ((sums) = _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(input), _mm512_loadu_si512((const void *)(weight))))
#define ADD_HEAD(sums, input, weight)                                         \
    ((sums) = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_set1_epi32(input), \
                                                       _mm512_loadu_si512((const void *)(weight)))))
#define REQUANTISE requantise_avx512
#include "_encode_path.h"

/* The same in vectors of 256 bits. They lie in memory alike, so a network that has one path has the other. */
#define NAME(function) avx512vl_vnni_##function
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,prefer-vector-width=256")))

TARGET INLINE void
requantise_avx512vl(const int32_t *sums, const Layer *layer, int channel, size_t Py_UNUSED(bytes), void *out, int to)
{
    for (int c = 0; c < GROUP; c += 8) {
        const float *multiplier = layer->multiplier + channel + c;
        __m256i positive = _mm256_max_epi32(_mm256_loadu_si256((const void *)(sums + c)), _mm256_setzero_si256());
        __m256 values = _mm256_mul_ps(_mm256_cvtepi32_ps(positive), _mm256_loadu_ps(multiplier));
        values = _mm256_min_ps(values, _mm256_set1_ps(layer->last ? HEAD_TOP : TOP));
        values = _mm256_round_ps(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (layer->last)
            _mm_storeu_si128((void *)((int16_t *)out + to + c), _mm256_cvtepi32_epi16(_mm256_cvttps_epi32(values)));
        else
            _mm_storel_epi64((void *)((uint8_t *)out + to + c), _mm256_cvtepi32_epi8(_mm256_cvttps_epi32(values)));
    }
}

#define Input uint8_t
#define Weight int8_t
#define STEP 4
#define HEAD_STEP 2
#define LANES 8
#define SUMS 16
#define MOST_VECTORS 4
#define Sums __m256i
#define Inputs int32_t
#define ADD(sums, input, weight) \
    ((sums) = _mm256_dpbusd_epi32(sums, _mm256_set1_epi32(input), _mm256_loadu_si256((const void *)(weight))))
#define ADD_HEAD(sums, input, weight)                                         \
    ((sums) = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_set1_epi32(input), \
                                                       _mm256_loadu_si256((const void *)(weight)))))
#define REQUANTISE requantise_avx512vl
#include "_encode_path.h"

static int
has_avx512_vnni(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

/* AMX multiplies matrices: a row is what the kernel sees at an output, a column the weights of a channel. They lie
 * in memory as they do for VNNI, and so all but the convolution is that path's. Linux lends a process the tile
 * registers when it asks. */
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAVE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#define TARGET __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512vnni")))
#define amx_int8_pad avx512_vnni_pad
#define amx_int8_head avx512_vnni_head

static int
has_amx_int8(void)
{
    enum { REQUEST = 0x1023, TILES = 18 }; /* Linux's ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA */
    unsigned a, b, c, d;
    return has_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 &&
           syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
}

/* Compute the outputs that are marked, and others. Four tiles of neighbours in a row use the weights together:
 * registers 0 to 3 hold their sums, 4 holds weights, 5 inputs. */
TARGET static void
amx_int8_convolve(const Layer *layer, const void *in, void *out, const Mask *mask)
{
    const int wide = layer->side < 16 ? layer->side : 16; /* outputs in a tile */
    const int run = 4 * layer->before, step = run < 64 ? run : 64, pitch = 2 * (layer->side + 1) * layer->before;
    const int border = !layer->last, edge = layer->side + 2 * border;
    struct {
        int y, x;
    } tile[SIDE];
    int count = 0;
    for (int y = 0; y < layer->side; y++)
        for (int x = 0; x < layer->side; x += wide)
            if (mask->row[y] >> x & ((1 << wide) - 1))
                tile[count].y = y, tile[count++].x = x;
    if (count == 0)
        return;

    struct {
        uint8_t palette, zero[15];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {1, {0}, {64, 64, 64, 64, 64, (uint16_t)step}, {0}};
    memset(shapes.rows, wide, 6);
    shapes.rows[4] = (uint8_t)(step / 4);
    __asm__ volatile("" : : "r"(&shapes) : "memory"); /* GCC believes that only 8 bytes of them are read */
    _tile_loadconfig(&shapes);

    for (int first = 0; first < count; first += 4) {
        const uint8_t *corner[4];
        for (int t = 0; t < 4; t++) { /* the last four may be fewer, of which one is computed again */
            int i = first + t < count ? first + t : count - 1;
            corner[t] = (const uint8_t *)in + 2 * tile[i].y * pitch + 2 * tile[i].x * layer->before;
        }
        for (int channel = 0; channel < layer->after; channel += GROUP) {
            const int8_t *weight = (const int8_t *)layer->weight + channel * 4;
            int32_t sums[4][16][GROUP];
#define EACH_TILE(DO) DO(0) DO(1) DO(2) DO(3) /* registers have no index */
#define BIAS(t) _tile_loadd(t, layer->bias + channel, 0);
#define ADD(t) _tile_loadd(5, corner[t] + k, 2 * layer->before); _tile_dpbusd(t, 5, 4);
#define STORE(t) _tile_stored(t, sums[t], 64);
            EACH_TILE(BIAS)
            for (int row = 0; row < 4; row++)
                for (int k = row * pitch; k < row * pitch + run; k += step, weight += step * layer->after) {
                    _tile_loadd(4, weight, 4 * layer->after);
                    EACH_TILE(ADD)
                }
            EACH_TILE(STORE)
#undef EACH_TILE
#undef BIAS
#undef ADD
#undef STORE
            for (int t = 0; t < 4 && first + t < count; t++)
                for (int p = 0; p < wide; p++) {
                    int at = (tile[first + t].y + border) * edge + tile[first + t].x + p + border;
                    requantise_avx512(sums[t][p], layer, channel, 1, out, at * layer->after + channel);
                }
        }
    }
    _tile_release(); /* so that what switches between threads need not save the tiles */
}
#undef TARGET
#endif

/* CPUs with AVX-VNNI but without AVX-512, such as Intel's since Alder Lake. */
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAVE_AVX_VNNI
#define NAME(function) avx_vnni_##function
#define TARGET __attribute__((target("avx2,avxvnni")))
#define Input uint8_t
#define Weight int8_t
#define STEP 4
#define HEAD_STEP 2
#define LANES 8
#define SUMS 8
#define MOST_VECTORS 2
#define Sums __m256i
#define Inputs int32_t
#define ADD(sums, input, weight)                                              \
    ((sums) = _mm256_dpbusd_avx_epi32(sums, _mm256_set1_epi32(input), \
                                      _mm256_loadu_si256((const void *)(weight))))
#define ADD_HEAD(sums, input, weight)                                         \
    ((sums) = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_set1_epi32(input), \
                                                       _mm256_loadu_si256((const void *)(weight)))))
#define REQUANTISE requantise
#include "_encode_path.h"

static int
has_avx_vnni(void)
{
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif
#endif

#define PATH(name, light, supported, step, input, head_step)                                       \
    {#name,     light,         supported,         step,        sizeof(input), step == 4 ? 1 : 2, \
     head_step, name##_pad, name##_convolve, name##_head}

/* The fastest first. */
static const Path PATHS[] = {
#if defined(__GNUC__) && defined(__x86_64__)
#ifdef HAVE_AMX
    PATH(amx_int8, "avx512vl_vnni", has_amx_int8, 4, uint8_t, 2),
#endif
    PATH(avx512_vnni, "avx512vl_vnni", has_avx512_vnni, 4, uint8_t, 2),
    PATH(avx512vl_vnni, NULL, has_avx512_vnni, 4, uint8_t, 2),
#ifdef HAVE_AVX_VNNI
    PATH(avx_vnni, NULL, has_avx_vnni, 4, uint8_t, 2),
#endif
    PATH(avx2, NULL, has_avx2, 2, int16_t, 2),
#endif
    PATH(plain, NULL, always, 1, int16_t, 1),
};
#define NUM_PATHS ((int)(sizeof PATHS / sizeof PATHS[0]))

/* Mark the pixels that differ from the background's, four neighbours together. */
static void
compare(const uint8_t *frame, const uint8_t *background, Mask *mask)
{
    for (int y = 0; y < SIDE; y++, frame += SIDE * 3, background += SIDE * 3) {
        mask->row[y] = 0;
        if (memcmp(frame, background, SIDE * 3) == 0)
            continue;
        for (int x = 0; x < SIDE; x += 4) {
            uint64_t a, b;
            uint32_t c, d;
            memcpy(&a, frame + 3 * x, 8), memcpy(&b, background + 3 * x, 8);
            memcpy(&c, frame + 3 * x + 8, 4), memcpy(&d, background + 3 * x + 8, 4);
            mask->row[y] |= (uint64_t)(((a ^ b) | (c ^ d)) != 0) * 15 << x;
        }
    }
}

/* Move every second bit, beginning with the first, to the lower half; bits between them are lost. */
static uint64_t
every_second(uint64_t bits)
{
    bits &= 0x5555555555555555;
    bits = (bits | bits >> 1) & 0x3333333333333333;
    bits = (bits | bits >> 2) & 0x0f0f0f0f0f0f0f0f;
    bits = (bits | bits >> 4) & 0x00ff00ff00ff00ff;
    bits = (bits | bits >> 8) & 0x0000ffff0000ffff;
    return (bits | bits >> 16) & 0xffffffff;
}

/* Mark the outputs of a convolution that see a marked input: (2y - 1 .. 2y + 2, 2x - 1 .. 2x + 2). */
static void
spread(const Mask *in, int side, Mask *out)
{
    for (int y = 0; y < side; y++) {
        uint64_t seen = in->row[2 * y] | in->row[2 * y + 1];
        if (y > 0)
            seen |= in->row[2 * y - 1];
        if (y + 1 < side)
            seen |= in->row[2 * y + 2];
        out->row[y] = every_second(seen << 1 | seen | seen >> 1 | seen >> 2);
    }
}

static int
count_bits(uint64_t bits)
{
    bits -= bits >> 1 & 0x5555555555555555;
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return (int)(bits * 0x0101010101010101 >> 56);
}

/* Choose how to compute what is marked, when `frames` frames are like this one.
 *
 * 512-bit products and tiles make a CPU lower its clock for a millisecond. Between two steps of an environment it
 * is cheaper to take twice as long over the little that has changed. */
static const Path *
choose_path(const Network *network, const Workspace *work, Py_ssize_t frames)
{
    if (network->light == network->path)
        return network->path;
    int64_t products = 0;
    for (int i = 0; i < network->depth; i++) {
        const Layer *layer = &network->layer[i];
        int marked = 0;
        for (int y = 0; y < layer->side; y++)
            marked += count_bits(work->mask[i + 1].row[y]);
        products += (int64_t)marked * 16 * layer->before * layer->after;
    }
    return products < LITTLE / frames ? network->light : network->path;
}

/* Compute the parts of the pictures that differ from the background's. */
static void
run_layers(const Network *network, const Path *path, const uint8_t *frame, Workspace *work)
{
    path->pad(frame, &work->mask[0], work->picture[0]);
    for (int i = 0; i < network->depth; i++)
        path->convolve(&network->layer[i], work->picture[i], work->picture[i + 1], &work->mask[i + 1]);
}

/* Make the pictures the background's again. */
static void
restore(const Network *network, Workspace *work)
{
    network->light->pad(network->background, &work->mask[0], work->picture[0]);
    for (int i = 0; i < network->depth; i++) {
        const Layer *layer = &network->layer[i];
        const int border = !layer->last;
        size_t bytes = (size_t)(layer->side + 2 * border) * (size_t)layer->after;
        bytes *= layer->last ? sizeof(int16_t) : network->path->input;
        for (int y = 0; y < layer->side; y++)
            if (work->mask[i + 1].row[y]) {
                size_t row = (size_t)(y + border) * bytes;
                memcpy((char *)work->picture[i + 1] + row, (const char *)layer->background + row, bytes);
            }
    }
}

static void
encode_frame(const Network *network, const uint8_t *frame, Py_ssize_t frames, Workspace *work, float *latent)
{
    compare(frame, network->background, &work->mask[0]);
    for (int i = 0; i < network->depth; i++)
        spread(&work->mask[i], network->layer[i].side, &work->mask[i + 1]);
    const Path *path = choose_path(network, work, frames);
    run_layers(network, path, frame, work);

    /* The head is linear: its sums are those of the background plus those of the differences. */
    const Layer *last = &network->layer[network->depth - 1];
    const int16_t *features = work->picture[network->depth], *background = last->background;
    const uint64_t *mask = work->mask[network->depth].row;
    int count = 0;
    for (int position = 0; position < network->positions; position++) {
        if (mask[position / last->side] >> (position % last->side) & 1) {
            int from = position * network->features, to = count * network->features;
            for (int c = 0; c < network->features; c++)
                work->differences[to + c] = (int16_t)(features[from + c] - background[from + c]);
            work->where[count++] = position;
        }
    }
    memcpy(work->sums, network->head_sums, (size_t)network->padded_outputs * sizeof *work->sums);
    path->head(network, work->differences, work->where, count, work->sums);
    for (int i = 0; i < network->outputs; i++) {
        double product = (double)work->sums[i] * network->scale[i]; /* hatch_build.py passes -ffp-contract=off */
        latent[i] = (float)(product + network->offset[i]);
    }
    restore(network, work);
}

/* Memory for a network or a workspace is one block; NULL asks how large it is. */
static void *
take(char **memory, size_t *used, size_t bytes)
{
    void *taken = *memory ? *memory + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return taken;
}

/* The first place in a block of memory at which a cache line begins: reading across lines takes twice as long. */
static void *
aligned(void *memory)
{
    return (void *)(((uintptr_t)memory + 63) / 64 * 64);
}

static int
padded_to(int channels, int group)
{
    return (channels + group - 1) / group * group;
}

/* What prepare() was given. */
typedef struct {
    int channels[MOST_LAYERS], outputs;
    Py_buffer weight, bias, multiplier, head, scale, offset, background;
} Given;

/* Weights of a layer with `in` inputs, `out` outputs, in fields of `step` inputs by all outputs. */
#define PUT(type, at, step, out, k, j, value) \
    ((type *)(at))[((k) / (step) * (out) + (j)) * (step) + (k) % (step)] = (type)(value)

static void
fill_layer(const Path *path, Layer *layer, int before, int after, const int8_t *weight, const int32_t *bias,
           const float *multiplier, void *packed, int32_t *own_bias, float *own_multiplier)
{
    for (int tap = 0; tap < 16; tap++)
        for (int c = 0; c < before; c++)
            for (int j = 0; j < after; j++) {
                int k = tap * layer->before + c, value = weight[(tap * before + c) * after + j];
                if (path->weight == 1)
                    PUT(int8_t, packed, path->step, layer->after, k, j, value);
                else
                    PUT(int16_t, packed, path->step, layer->after, k, j, value);
            }
    memcpy(own_bias, bias, (size_t)after * sizeof *bias);
    memcpy(own_multiplier, multiplier, (size_t)after * sizeof *multiplier);
    layer->weight = packed;
    layer->bias = own_bias;
    layer->multiplier = own_multiplier;
}

/* Lay the network out in `memory`, which is zero, and return its size; with NULL only the size. */
static size_t
lay_out(Network *network, const Given *given, char *memory)
{
    const Path *path = network->path;
    size_t used = 0;
    const int8_t *weight = given->weight.buf;
    const int32_t *bias = given->bias.buf;
    const float *multiplier = given->multiplier.buf;
    int before = 3;
    for (int i = 0; i < network->depth; i++) {
        Layer *layer = &network->layer[i];
        int after = given->channels[i];
        layer->side = SIDE >> (i + 1);
        layer->before = i ? padded_to(before, GROUP) : 3;
        layer->after = padded_to(after, GROUP);
        layer->last = i == network->depth - 1;
        size_t edge = (size_t)layer->side + (layer->last ? 0 : 2);
        layer->bytes = edge * edge * (size_t)layer->after * (layer->last ? sizeof(int16_t) : path->input);
        layer->bytes = (layer->bytes + 63) / 64 * 64;
        void *packed = take(&memory, &used, (size_t)(16 * layer->before * layer->after) * path->weight);
        int32_t *own_bias = take(&memory, &used, (size_t)layer->after * sizeof *own_bias);
        float *own_multiplier = take(&memory, &used, (size_t)layer->after * sizeof *own_multiplier);
        layer->background = take(&memory, &used, layer->bytes);
        if (memory)
            fill_layer(path, layer, before, after, weight, bias, multiplier, packed, own_bias, own_multiplier);
        weight += 16 * before * after, bias += after, multiplier += after;
        before = after;
    }
    const Layer *last = &network->layer[network->depth - 1];
    network->positions = last->side * last->side;
    network->features = last->after;
    network->outputs = given->outputs;
    network->padded_outputs = padded_to(given->outputs, HEAD_GROUP);
    size_t weights = (size_t)network->positions * network->features * network->padded_outputs;
    int16_t *head = take(&memory, &used, weights * sizeof *head);
    network->head_sums = take(&memory, &used, (size_t)network->padded_outputs * sizeof(int32_t));
    double *scale = take(&memory, &used, (size_t)network->outputs * sizeof *scale);
    double *offset = take(&memory, &used, (size_t)network->outputs * sizeof *offset);
    uint8_t *background = take(&memory, &used, FRAME);
    if (!memory)
        return used;
    const int16_t *from = given->head.buf;
    for (int position = 0; position < network->positions; position++)
        for (int c = 0; c < before; c++)
            for (int j = 0; j < network->outputs; j++) {
                int k = position * network->features + c;
                PUT(int16_t, head, path->head_step, network->padded_outputs, k, j, *from++);
            }
    memcpy(scale, given->scale.buf, (size_t)network->outputs * sizeof *scale);
    memcpy(offset, given->offset.buf, (size_t)network->outputs * sizeof *offset);
    memcpy(background, given->background.buf, FRAME);
    network->head = head, network->scale = scale, network->offset = offset, network->background = background;
    return used;
}

/* Lay a workspace out in `memory`, and return its size; with NULL only the size. */
static size_t
lay_out_workspace(const Network *network, Workspace *work, char *memory)
{
    const size_t positions = (size_t)network->positions;
    size_t used = 0;
    work->picture[0] = take(&memory, &used, (SIDE + 2) * (SIDE + 2) * 3 * network->path->input);
    for (int i = 0; i < network->depth; i++)
        work->picture[i + 1] = take(&memory, &used, network->layer[i].bytes);
    work->differences = take(&memory, &used, positions * (size_t)network->features * sizeof *work->differences);
    work->where = take(&memory, &used, positions * sizeof *work->where);
    work->sums = take(&memory, &used, (size_t)network->padded_outputs * sizeof *work->sums);
    return used;
}

static void
free_workspace(Workspace *work)
{
    if (work != NULL)
        free(work->memory);
    free(work);
}

/* Return a workspace, or NULL when there is no memory. */
static Workspace *
make_workspace(const Network *network)
{
    Workspace *work = calloc(1, sizeof *work);
    if (work != NULL)
        work->memory = calloc(1, lay_out_workspace(network, work, NULL) + 64);
    if (work == NULL || work->memory == NULL) {
        free_workspace(work);
        return NULL;
    }
    lay_out_workspace(network, work, aligned(work->memory));
    memset(work->mask, 0xff, sizeof work->mask);
    restore(network, work);
    return work;
}

/* Compute what the background frame gives; 0 when there is no memory. */
static int
run_background(Network *network)
{
    Workspace *work = network->spare = make_workspace(network);
    if (work == NULL)
        return 0;
    run_layers(network, network->path, network->background, work);
    for (int i = 0; i < network->depth; i++)
        memcpy(network->layer[i].background, work->picture[i + 1], network->layer[i].bytes);
    for (int position = 0; position < network->positions; position++)
        work->where[position] = position;
    network->path->head(network, work->picture[network->depth], work->where, network->positions, network->head_sums);
    return 1;
}

/* Take a workspace out of the network; the GIL is held, and where there is none each call makes its own. */
static Workspace *
borrow_workspace(Network *network)
{
    Workspace *work = NULL;
#ifndef Py_GIL_DISABLED
    work = network->spare;
    network->spare = NULL;
#endif
    return work != NULL ? work : make_workspace(network);
}

static void
return_workspace(Network *network, Workspace *work)
{
#ifndef Py_GIL_DISABLED
    if (network->spare == NULL) {
        network->spare = work;
        return;
    }
#endif
    free_workspace(work);
}

static void
free_network(Network *network)
{
    free_workspace(network->spare);
    free(network->memory);
    free(network);
}

static void
free_capsule(PyObject *capsule)
{
    free_network(PyCapsule_GetPointer(capsule, "latent_obs._encode.Network"));
}

static const Path *
find_path(const char *name)
{
    for (int i = 0; i < NUM_PATHS; i++)
        if (strcmp(name, PATHS[i].name) == 0 && PATHS[i].supported())
            return &PATHS[i];
    PyErr_Format(PyExc_ValueError, "This CPU or build has no path \"%s\".", name);
    return NULL;
}

static PyObject *
make_network(const Given *given, int depth, const Path *path)
{
    Network *network = calloc(1, sizeof *network);
    if (network == NULL)
        return PyErr_NoMemory();
    network->path = path;
    network->light = path->light != NULL ? find_path(path->light) : path;
    network->depth = depth;
    size_t bytes = lay_out(network, given, NULL);
    network->memory = calloc(1, bytes + 64);
    if (network->memory != NULL)
        lay_out(network, given, aligned(network->memory));
    if (network->memory == NULL || !run_background(network)) {
        free_network(network);
        return PyErr_NoMemory();
    }
    PyObject *capsule = PyCapsule_New(network, "latent_obs._encode.Network", free_capsule);
    if (capsule == NULL)
        free_network(network);
    return capsule;
}

/* Check what prepare() was given against its channels; returns what is wrong, or NULL. */
static const char *
wrong_size(const Given *given, int depth)
{
    Py_ssize_t weights = 0, sum = 0, before = 3, side = SIDE >> depth;
    for (int i = 0; i < depth; i++) {
        weights += 16 * before * given->channels[i];
        sum += before = given->channels[i];
    }
    return given->weight.len != weights ? "weight"
           : given->bias.len != sum * 4 ? "bias"
           : given->multiplier.len != sum * 4 ? "multiplier"
           : given->head.len != side * side * before * given->outputs * 2 ? "head"
           : given->scale.len != given->outputs * 8 ? "scale"
           : given->offset.len != given->outputs * 8 ? "offset"
           : given->background.len != FRAME ? "background" : NULL;
}

PyDoc_STRVAR(prepare_doc,
"prepare(channels, weight, bias, multiplier, head, scale, offset, background, path, /)\n"
"--\n\n"
"Return a network for :func:`encode`.\n\n"
"Args:\n"
"    channels: Output channels of the convolutions, one to six of them, each at most 1024.\n"
"    weight: ``int8``, of one convolution after the other, each of shape ``(4, 4, before, after)``.\n"
"    bias: ``int32``, of one convolution after the other.\n"
"    multiplier: ``float32``, what turns a sum into the next layer's input.\n"
"    head: ``int16``, shape ``(side, side, channels[-1], outputs)``.\n"
"    scale: ``float64``, shape ``(outputs,)``.\n"
"    offset: ``float64``; an output is its sum times ``scale`` plus ``offset``.\n"
"    background: A frame; what equals it is computed once, here.\n"
"    path: One of :func:`paths`. All give the same bits.\n\n"
"Raises:\n"
"    ValueError: If a size is wrong, or the CPU does not have the path.\n"
"    TypeError: If an argument has another type.\n");

static PyObject *
prepare(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *channels, *result = NULL;
    const char *name;
    Given given;
    if (!PyArg_ParseTuple(args, "O!y*y*y*y*y*y*y*s:prepare", &PyTuple_Type, &channels, &given.weight, &given.bias,
                          &given.multiplier, &given.head, &given.scale, &given.offset, &given.background, &name))
        return NULL;
    int depth = (int)PyTuple_GET_SIZE(channels), ok = 1 <= depth && depth <= MOST_LAYERS;
    for (int i = 0; ok && i < depth; i++) {
        long size = PyLong_AsLong(PyTuple_GET_ITEM(channels, i));
        ok = 1 <= size && size <= 1024;
        given.channels[i] = (int)size;
    }
    given.outputs = (int)(given.scale.len / 8);
    const char *wrong = ok ? wrong_size(&given, depth) : "channels";
    const Path *path = NULL;
    if (wrong && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s has the wrong size.", wrong);
    else if (!wrong)
        path = find_path(name);
    if (path != NULL)
        result = make_network(&given, depth, path);
    PyBuffer_Release(&given.weight);
    PyBuffer_Release(&given.bias);
    PyBuffer_Release(&given.multiplier);
    PyBuffer_Release(&given.head);
    PyBuffer_Release(&given.scale);
    PyBuffer_Release(&given.offset);
    PyBuffer_Release(&given.background);
    return result;
}

PyDoc_STRVAR(encode_doc,
"encode(network, frames, latents, /)\n"
"--\n\n"
"Encode frames in the calling thread, without the GIL. Threads may share a network.\n\n"
"Args:\n"
"    network: From :func:`prepare`.\n"
"    frames: ``uint8``, shape ``(N, 64, 64, 3)``, C-contiguous.\n"
"    latents: ``float32``, shape ``(N, outputs)``, C-contiguous, writable; the result.\n\n"
"Raises:\n"
"    ValueError: If a size is wrong.\n");

static PyObject *
encode(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer frames, latents;
    PyObject *result = NULL;
    if (nargs != 3)
        return PyErr_Format(PyExc_TypeError, "encode() takes 3 arguments, got %zd.", nargs);
    Network *network = PyCapsule_GetPointer(args[0], "latent_obs._encode.Network");
    if (network == NULL || PyObject_GetBuffer(args[1], &frames, PyBUF_SIMPLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(args[2], &latents, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&frames);
        return NULL;
    }
    Py_ssize_t count = frames.len / FRAME;
    if (frames.len != count * FRAME || latents.len != count * network->outputs * (Py_ssize_t)sizeof(float)) {
        PyErr_SetString(PyExc_ValueError, "frames must be uint8 (N, 64, 64, 3), latents float32 (N, outputs).");
    }
    else {
        Workspace *work = borrow_workspace(network);
        if (work != NULL) {
            Py_BEGIN_ALLOW_THREADS
            for (Py_ssize_t i = 0; i < count; i++)
                encode_frame(network, (const uint8_t *)frames.buf + i * FRAME, count, work,
                             (float *)latents.buf + i * network->outputs);
            Py_END_ALLOW_THREADS
            return_workspace(network, work);
        }
        result = work != NULL ? Py_NewRef(Py_None) : PyErr_NoMemory();
    }
    PyBuffer_Release(&latents);
    PyBuffer_Release(&frames);
    return result;
}

PyDoc_STRVAR(paths_doc,
"paths()\n"
"--\n\n"
"Return the names of the paths that this CPU has, the fastest first; the last is ``\"plain\"``.\n");

static PyObject *
paths(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *names = PyList_New(0);
    for (int i = 0; names != NULL && i < NUM_PATHS; i++) {
        if (!PATHS[i].supported())
            continue;
        PyObject *name = PyUnicode_FromString(PATHS[i].name);
        if (name == NULL || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS, prepare_doc},
    {"encode", (PyCFunction)(void (*)(void))encode, METH_FASTCALL, encode_doc},
    {"paths", paths, METH_NOARGS, paths_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "latent_obs._encode",
    .m_doc = "The encoder in integers, compiled; encoders/runtimes.py does without it where it is missing.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__encode(void)
{
    return PyModuleDef_Init(&definition);
}
