/* A wall clock that a test sets, for one process and while it runs.
 *
 * Preloaded into the process, it moves the time of day by as many seconds as the file in TAILWATER_TEST_CLOCK says,
 * eight bytes in the machine's order. Time that only counts on (CLOCK_MONOTONIC) is left alone, as a kernel does.
 * Waits until a time of day end when this clock says so: a clock that is set back makes them longer.
 * The invariant: without that file the process does not start, so no test believes in a fault that never happens.
 * Deliberately absent: waits that our programs and their libraries do not use (pthread_cond_timedwait, sem_timedwait). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* How often a wait looks whether the clock was set. */
#define SLICE_NS 50000000L
#define SECOND_NS 1000000000L

static const volatile int64_t *shift;
static int (*wait_until)(cnd_t *, mtx_t *, const struct timespec *);

static void die(const char *what) {
  perror(what);
  _exit(70);
}

__attribute__((constructor)) static void map_shift(void) {
  const char *path = getenv("TAILWATER_TEST_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) die("TAILWATER_TEST_CLOCK");
  void *mapped = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) die("mmap");
  close(file);
  *(void **)&wait_until = dlsym(RTLD_NEXT, "cnd_timedwait");
  if (!wait_until) die("cnd_timedwait");
  shift = mapped;
}

static int machine(clockid_t clock, struct timespec *now) { return (int)syscall(SYS_clock_gettime, clock, now); }

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = machine(clock, now);
  if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec precise;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *copy) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (copy) *copy = now.tv_sec;
  return now.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
  return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}

static int is_before(const struct timespec *one, const struct timespec *other) {
  return one->tv_sec != other->tv_sec ? one->tv_sec < other->tv_sec : one->tv_nsec < other->tv_nsec;
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  for (;;) {
    struct timespec end = *until, slice;
    end.tv_sec -= *shift;
    machine(CLOCK_REALTIME, &slice);
    slice.tv_nsec += SLICE_NS;
    if (slice.tv_nsec >= SECOND_NS) {
      slice.tv_sec += 1;
      slice.tv_nsec -= SECOND_NS;
    }
    int is_last = is_before(&end, &slice);
    int outcome = wait_until(condition, mutex, is_last ? &end : &slice);
    if (outcome != thrd_timedout || is_last) return outcome;
  }
}
