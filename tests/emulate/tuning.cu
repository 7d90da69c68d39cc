/* tuning.cu against the host: how far results are from one another. */
#include "tuning.h"

#include "cuda.h"
#include "on_device.h"

using namespace sd;

template <class T> static double
distance(struct sd_device *d, const std::vector<T> &found, const std::vector<T> &again, const std::vector<T> *expected)
{
    T *f = up(d, found), *a = up(d, again), *e = expected ? up(d, *expected) : NULL;
    double apart = tuning_distance(d, f, a, e, dtype_of<T>::value, found.size());

    sd_device_free(d, f);
    sd_device_free(d, a);
    sd_device_free(d, e);
    return apart;
}

template <class T> static std::vector<T>
rounded(const std::vector<float> &x)
{
    std::vector<T> y(x.size());

    for (size_t i = 0; i < x.size(); i++)
        y[i] = from_float<T>(x[i]);
    return y;
}

/* One element is off by 5, or has another bit the second time, wherever it lies. */
template <class T> static void
check_sizes(struct sd_device *d)
{
    for (size_t n : { 1, 7, 8, 9, 255, 8192, 8193, 70001 }) {
        std::vector<T> x = rounded<T>(numbers(n, n)), y = x, z = x;
        size_t at = n * 2 / 3;
        double apart = 0, all = 0, found;

        y[at] = from_float<T>(to_float(x[at]) + 5);
        z[at].bits ^= 1;
        for (size_t i = 0; i < n; i++) {
            double e = to_float(x[i]), off = to_float(y[i]) - e;

            apart += off * off;
            all += e * e;
        }
        found = distance(d, y, y, &x);
        CHECK(fabs(found - sqrt(apart / all)) <= 1e-12 * found && distance(d, x, x, &x) == 0, "%s, %zu: one is off: %.17g",
              sd_dtype_name(dtype_of<T>::value), n, found);
        CHECK(distance(d, x, z, &x) == INFINITY && distance(d, x, z, (std::vector<T> *)NULL) == INFINITY && distance(d, y, y, (std::vector<T> *)NULL) == 0,
              "%zu: other bits the second time", n);
    }
}

int
main(void)
{
    typedef std::vector<float> floats;
    struct sd_device *d = open_device();
    const floats a = { 3, 4, 0 }, b = { 3, 4, 5 }, none = { 0, 0, 0 }, endless = { INFINITY, 1, 2 }, nan = { NAN, 4, 0 };

    CHECK(distance(d, a, a, &a) == 0 && fabs(distance(d, b, b, &a) - 1) < 1e-12, "5 from a vector of length 5");
    CHECK(isnan(distance(d, nan, nan, &a)) && !(distance(d, nan, nan, &none) <= 1), "what is no number is never near");
    CHECK(distance(d, a, a, &none) == INFINITY && distance(d, none, none, &none) == 0, "nothing is near to zero but zero");
    CHECK(distance(d, a, a, &endless) == 0, "what is not finite is expected of nobody");
    CHECK(distance(d, none, floats{ 0, -0.0f, 0 }, &none) == INFINITY, "two zeros are other bits");
    check_sizes<bf16>(d);
    check_sizes<f16>(d);
    sd_device_close(d);
    return check_done();
}
