/* Area resize of uint8 RGB images to 64x64: the numbers of cv2's INTER_AREA, sooner.
 *
 * Every output pixel is the mean of the rectangle of input under it, border pixels counted by the
 * part that is covered. As in cv2, each input row is shrunk to 64 pixels and the shrunk rows are
 * then added up, both in float32 and in cv2's order, so that even ties round alike. That holds
 * while the compiler does not fuse a * b + c: hatch_build.py passes -ffp-contract=off.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SIDE 64         /* width and height of the output */
#define ROW (SIDE * 3)  /* numbers in one row of it */

/* One compiled copy for each x86 generation, chosen when the module loads; needs glibc's ifunc. Products of 512 bits
 * would make the clock slower for a while, and with it the environment's step. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define EACH_CPU __attribute__((target_clones("avx2", "default")))
#else
#define EACH_CPU
#endif

/* A pixel and the number after it, which is carried along because four make a vector. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
typedef float Quad __attribute__((vector_size(16)));
#define ADD_WEIGHTED(total, weight, quad) ((total) += (weight) * (quad))
#else
#define INLINE static inline
typedef struct {
    float of[4];
} Quad;
#define ADD_WEIGHTED(total, weight, quad)      \
    do {                                       \
        for (int c_ = 0; c_ < 4; c_++)         \
            (total).of[c_] += (weight) * (quad).of[c_]; \
    } while (0)
#endif

/* Along one axis, output i is the sum over k < taps of weight[i * taps + k] * input[start[i] + k].
 * Weights past the last that counts are 0, and so may lie past the end of the input. */
typedef struct {
    Py_ssize_t taps, start[SIDE];
    float *weight;
} Axis;

static double
scale_of(Py_ssize_t size)
{
    return 1.0 / ((double)SIDE / (double)size); /* cv2's way, rounding included */
}

static int
is_whole(double scale)
{
    return fabs(scale - rint(scale)) < DBL_EPSILON;
}

/* Fill an axis as cv2's computeResizeAreaTab does; 0 when there is no memory. */
static int
fill_axis(Axis *axis, Py_ssize_t size, int counting)
{
    double scale = scale_of(size);
    Py_ssize_t most = (Py_ssize_t)scale + 3;
    float *weight = axis->weight = calloc((size_t)most * SIDE, sizeof(float));
    if (weight == NULL)
        return 0;
    axis->taps = 0;
    for (int i = 0; i < SIDE; i++) {
        double begin = i * scale, end = begin + scale, cell = fmin(scale, (double)size - begin);
        Py_ssize_t first = (Py_ssize_t)ceil(begin), last = (Py_ssize_t)floor(end), k = i * most;
        last = last < size - 1 ? last : size - 1;
        first = first < last ? first : last;
        axis->start[i] = first;
        if ((double)first - begin > 1e-3) {
            axis->start[i]--; /* not below 0, for begin is not */
            weight[k++] = (float)(((double)first - begin) / cell);
        }
        for (Py_ssize_t at = first; at < last; at++)
            weight[k++] = (float)(1.0 / cell);
        if (end - (double)last > 1e-3)
            weight[k++] = (float)(fmin(fmin(end - (double)last, 1.0), cell) / cell);
        k -= i * most;
        axis->taps = k > axis->taps ? k : axis->taps;
    }
    for (int i = 0; i < SIDE; i++) /* close the gaps */
        for (Py_ssize_t k = 0; k < axis->taps; k++)
            weight[i * axis->taps + k] = weight[i * most + k];
    if (counting)
        for (Py_ssize_t k = 0; k < axis->taps * SIDE; k++)
            weight[k] = weight[k] > 0 ? 1.0f : 0.0f;
    return 1;
}

INLINE void
shrink_row(const float *wide, const Axis *x, Py_ssize_t taps, float *narrow)
{
    for (int i = 0; i < SIDE; i++) {
        Quad total, quad;
        memset(&total, 0, sizeof total);
        for (Py_ssize_t k = 0; k < taps; k++) {
            memcpy(&quad, wide + (x->start[i] + k) * 3, sizeof quad);
            ADD_WEIGHTED(total, x->weight[i * taps + k], quad);
        }
        memcpy(narrow + i * 3, &total, sizeof total); /* the next pixel overwrites the fourth */
    }
}

/* `wide` holds (width + x->taps) * 3 + 1 numbers, zero past the width. */
EACH_CPU static void
resize_one(const uint8_t *src, Py_ssize_t row_stride, Py_ssize_t width, const Axis *x, const Axis *y,
           float scale, float bias, float *wide, uint8_t *dst)
{
    float narrow[ROW + 1], sum[ROW];
    const uint8_t *done = NULL; /* the input row in `narrow`: neighbours may share one, or be alike */
    for (int i = 0; i < SIDE; i++, dst += ROW) {
        memset(sum, 0, sizeof sum);
        for (Py_ssize_t k = 0; k < y->taps; k++) {
            float weight = y->weight[i * y->taps + k];
            if (weight == 0)
                break;
            const uint8_t *from = src + (y->start[i] + k) * row_stride;
            if (done == NULL || (from != done && memcmp(from, done, (size_t)width * 3) != 0)) {
                for (Py_ssize_t j = 0; j < width * 3; j++)
                    wide[j] = from[j];
                switch (x->taps) { /* loops of known length are twice as fast */
                case 2: shrink_row(wide, x, 2, narrow); break;
                case 3: shrink_row(wide, x, 3, narrow); break;
                case 4: shrink_row(wide, x, 4, narrow); break;
                default: shrink_row(wide, x, x->taps, narrow);
                }
            }
            done = from;
            for (int j = 0; j < ROW; j++)
                sum[j] += weight * narrow[j];
        }
        for (int j = 0; j < ROW; j++) {
            /* Adding 2^23 rounds to the nearest integer, halves to even, and leaves it in the low bits. */
            float rounded = sum[j] * scale + bias + 8388608.0f;
            uint32_t bits;
            memcpy(&bits, &rounded, sizeof bits);
            dst[j] = (uint8_t)bits;
        }
    }
}

/* Resize `count` images; 0 when there is no memory. Touches no Python object. */
static int
resize_all(const uint8_t *src, Py_ssize_t count, Py_ssize_t image_stride, Py_ssize_t row_stride,
           Py_ssize_t height, Py_ssize_t width, uint8_t *dst)
{
    double across = scale_of(width), down = scale_of(height);
    int counting = is_whole(across) && is_whole(down); /* then cv2 counts and divides once */
    float scale = counting ? 1.0f / (float)(rint(across) * rint(down)) : 1.0f;
    float bias = counting && height == 2 * SIDE && width == 2 * SIDE ? 0.125f : 0.0f; /* cv2 rounds 2x2 up */
    Axis x = {0}, y = {0};
    float *wide = NULL;
    int ok = fill_axis(&x, width, counting) && fill_axis(&y, height, counting);
    if (ok)
        wide = calloc((size_t)(width + x.taps) * 3 + 1, sizeof(float));
    ok = wide != NULL;
    for (Py_ssize_t i = 0; ok && i < count; i++)
        resize_one(src + i * image_stride, row_stride, width, &x, &y, scale, bias, wide, dst + i * SIDE * ROW);
    free(wide);
    free(x.weight);
    free(y.weight);
    return ok;
}

static int
holds_bytes(const Py_buffer *view)
{
    return view->itemsize == 1 && (view->format == NULL || strcmp(view->format, "B") == 0);
}

static int
check(const Py_buffer *src, const Py_buffer *dst)
{
    int n = src->ndim;
    if (!holds_bytes(src) || (n != 3 && n != 4) || src->shape[n - 1] != 3) {
        PyErr_SetString(PyExc_ValueError, "src must be uint8 of shape (H, W, 3) or (N, H, W, 3).");
        return 0;
    }
    const Py_ssize_t *shape = src->shape + n - 3, *strides = src->strides + n - 3;
    if (shape[0] < SIDE || shape[1] < SIDE) {
        PyErr_Format(PyExc_ValueError, "src must be at least 64x64 pixels, got %zdx%zd.", shape[0], shape[1]);
        return 0;
    }
    if (strides[1] != 3 || strides[2] != 1) {
        PyErr_SetString(PyExc_ValueError, "The pixels of a row of src must be contiguous: copy it first.");
        return 0;
    }
    if (!holds_bytes(dst) || dst->ndim != n || (n == 4 && dst->shape[0] != src->shape[0]) ||
        dst->shape[n - 3] != SIDE || dst->shape[n - 2] != SIDE || dst->shape[n - 1] != 3) {
        PyErr_SetString(PyExc_ValueError,
                        "dst must be uint8 of shape (64, 64, 3), or (N, 64, 64, 3) with the N of src.");
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(resize_doc,
"resize(src, dst, /)\n"
"--\n\n"
"Resize RGB images to 64x64 by area, as ``cv2.resize`` does with ``INTER_AREA``.\n\n"
"Runs in the calling thread, without the GIL.\n\n"
"Args:\n"
"    src: ``uint8``, shape ``(H, W, 3)`` or ``(N, H, W, 3)``, H and W at least 64. Rows and images\n"
"        may lie anywhere (a crop is fine); the pixels of a row must be contiguous.\n"
"    dst: ``uint8``, shape ``(64, 64, 3)`` or ``(N, 64, 64, 3)``, C-contiguous, writable, and\n"
"        sharing no memory with ``src``; the result.\n\n"
"Raises:\n"
"    ValueError: If ``src`` or ``dst`` is not such an array.\n"
"    TypeError: If one of them has no buffer.\n");

static PyObject *
resize(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer src, dst;
    PyObject *result = NULL;
    if (nargs != 2)
        return PyErr_Format(PyExc_TypeError, "resize() takes 2 arguments, got %zd.", nargs);
    if (PyObject_GetBuffer(args[0], &src, PyBUF_RECORDS_RO) < 0)
        return NULL;
    if (PyObject_GetBuffer(args[1], &dst, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT) < 0) {
        PyBuffer_Release(&src);
        return NULL;
    }
    if (check(&src, &dst)) {
        int n = src.ndim, ok;
        Py_BEGIN_ALLOW_THREADS
        ok = resize_all(src.buf, n == 4 ? src.shape[0] : 1, n == 4 ? src.strides[0] : 0, src.strides[n - 3],
                        src.shape[n - 3], src.shape[n - 2], dst.buf);
        Py_END_ALLOW_THREADS
        result = ok ? Py_NewRef(Py_None) : PyErr_NoMemory();
    }
    PyBuffer_Release(&dst);
    PyBuffer_Release(&src);
    return result;
}

static PyMethodDef methods[] = {
    {"resize", (PyCFunction)(void (*)(void))resize, METH_FASTCALL, resize_doc},
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
    .m_name = "latent_obs._area",
    .m_doc = "Area resize of RGB images to 64x64, compiled; frames.py does without it where it is missing.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__area(void)
{
    return PyModuleDef_Init(&definition);
}
