/* test_signals.c: matrix products while signals arrive: a handler must not change a result, on whichever thread it would run. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tensor/matmul.h"

static volatile sig_atomic_t n_signals;

static void count_signal(int signal_number)
{
    (void)signal_number;
    n_signals++;
}

static void set_timer(long microseconds)
{
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* Small whole numbers: every order of summation gives the same result, so any difference is a broken one. */
static float *whole_numbers(size_t n, size_t period)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(i % period) - (float)(period / 2);
    return x;
}

static sp_status multiply(float *y, const float *x, const float *w, size_t n, size_t n_out, size_t n_in, bool backward)
{
    return backward ? sp_linear_backward(y, n_in, x, n_out, w, n, n_out, n_in, false)
                    : sp_linear(y, n_out, x, n_in, w, n, n_out, n_in, false);
}

static void check_shape(size_t n, size_t n_out, size_t n_in, bool backward)
{
    size_t n_result = n * (backward ? n_in : n_out);
    float *x = whole_numbers(n * (backward ? n_out : n_in), 7), *w = whole_numbers(n_out * n_in, 5);
    float *y = whole_numbers(n_result, 3), *expected = whole_numbers(n_result, 3);
    assert_int_equal(multiply(expected, x, w, n, n_out, n_in, backward), SP_OK);
    set_timer(300);
    for (double begin = sp_seconds(); sp_seconds() - begin < 0.15;) {
        assert_int_equal(multiply(y, x, w, n, n_out, n_in, backward), SP_OK);
        assert_memory_equal(y, expected, n_result * sizeof *y);
    }
    set_timer(0);
    free(x);
    free(w);
    free(y);
    free(expected);
}

static void products_survive_signals(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{40, 960, 576},  {7, 960, 576},   {4, 576, 3072},
                                       {4, 49152, 576}, {2, 576, 49152}, {200, 3072, 576}};
    const struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    sp_linear_shield_workers();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_shape(shapes[i][0], shapes[i][1], shapes[i][2], false);
        check_shape(shapes[i][0], shapes[i][1], shapes[i][2], true);
    }
    assert_true(n_signals > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products_survive_signals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
