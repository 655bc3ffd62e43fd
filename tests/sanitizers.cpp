// What the sanitizers call at start: leaks and races of libraries that are not ours, by name.
extern "C" {

// HDF5 forgets what it had allocated where it finds a file damaged or full; Open MPI and what it stands on keep memory
// until the end of the process. (Their frames are found only with ASAN_OPTIONS=fast_unwind_on_malloc=0.)
const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n"
         "leak:libmpi\n"
         "leak:libopen-pal\n"
         "leak:libopen-rte\n"
         "leak:libpmix\n"
         "leak:libhwloc\n"
         "leak:libevent\n";
}

// Open MPI and libevent are not instrumented: the sanitizer misses some of their locking and reports the rest.
const char* __tsan_default_suppressions() {
  return "race:libmpi\nrace:libopen-pal\nrace:libopen-rte\nrace:libpmix\nrace:libevent\nrace:mca_\n"
         "mutex:libevent\nmutex:mca_\n"
         "deadlock:libopen-pal\ndeadlock:libpmix\ndeadlock:libevent\ndeadlock:mca_\n"
         "thread:libopen-pal\nthread:libpmix\n";
}

}  // extern "C"
