/* A preloaded shim between SQLite and the disk.
 *
 * It looks at files under FAULTS_FOLDER whose name holds "state.db" (the index of the log,
 * "-shm", is not a file that anybody syncs and is left alone), and at that folder.
 *
 * Faults: while a file of this name is in FAULTS_CONTROL,
 *   enospc, erofs, eio-write   writing, extending and making files fail with that error
 *   eio-sync                   fsync and fdatasync fail with EIO
 *   eio-sync-once              the next one does, and the file is removed
 * The data of a sync that failed stays readable (in the page cache), as on Linux.
 *
 * Power cut: with FAULTS_SHADOW set, a copy of each file is made there at each sync that
 * succeeded ("data-<inode>-<birth>"), and a list of the folder's names at each sync of
 * the folder ("names": one line "<inode>-<birth> <name>" each). What is there is what a
 * power cut leaves at the least.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name)) real(#name))

static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int starts_with(const char *text, const char *with) {
    return with && *with && strncmp(text, with, strlen(with)) == 0;
}

static int is_ours(const char *path) {
    const char *slash = strrchr(path, '/');
    size_t length = strlen(path);
    if (!starts_with(path, getenv("FAULTS_FOLDER"))) return 0;
    if (!slash || !strstr(slash, "state.db")) return 0;
    return !(length > 4 && strcmp(path + length - 4, "-shm") == 0);
}

static int path_of(int fd, char *path) {
    char link[64];
    ssize_t size;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return 1;
}

static int flagged(const char *name, int once) {
    char flag[PATH_MAX];
    const char *control = getenv("FAULTS_CONTROL");
    if (!control) return 0;
    snprintf(flag, sizeof flag, "%s/%s", control, name);
    return (once ? unlink(flag) : access(flag, F_OK)) == 0;
}

static int write_error(void) {
    if (flagged("enospc", 0)) return ENOSPC;
    if (flagged("erofs", 0)) return EROFS;
    if (flagged("eio-write", 0)) return EIO;
    return 0;
}

static int cannot_write(int fd) {
    char path[PATH_MAX];
    int saved = errno, error = 0;
    if (path_of(fd, path) && is_ours(path)) error = write_error();
    errno = error ? error : saved;
    return error;
}

ssize_t write(int fd, const void *data, size_t size) {
    return cannot_write(fd) ? -1 : REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return cannot_write(fd) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return cannot_write(fd) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
int ftruncate(int fd, off_t size) {
    return cannot_write(fd) ? -1 : REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    return cannot_write(fd) ? -1 : REAL(ftruncate64)(fd, size);
}
int fallocate(int fd, int mode, off_t at, off_t size) {
    return cannot_write(fd) ? -1 : REAL(fallocate)(fd, mode, at, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
    int error = cannot_write(fd);
    return error ? error : REAL(posix_fallocate)(fd, at, size);
}

static int cannot_open(const char *path, int flags) {
    char whole[PATH_MAX];
    int error = 0;
    if ((flags & O_ACCMODE) == O_RDONLY) return 0;
    if (path[0] != '/') {
        char here[PATH_MAX / 2];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    if (is_ours(path)) {
        if (flagged("erofs", 0)) error = EROFS;
        else if ((flags & O_CREAT) && access(path, F_OK) != 0) error = write_error();
    }
    if (error) errno = error;
    return error;
}

#define OPENER(name)                                                   \
    int name(const char *path, int flags, ...) {                       \
        mode_t mode = 0;                                               \
        if (flags & (O_CREAT | __O_TMPFILE)) {                         \
            va_list rest;                                              \
            va_start(rest, flags);                                     \
            mode = va_arg(rest, mode_t);                               \
            va_end(rest);                                              \
        }                                                              \
        if (cannot_open(path, flags)) return -1;                       \
        return REAL(name)(path, flags, mode);                          \
    }
OPENER(open)
OPENER(open64)

/* Power cut ------------------------------------------------------------------------ */

static void identity(const struct statx *about, char *text, size_t size) {
    snprintf(text, size, "%llu-%lld.%u", (unsigned long long) about->stx_ino,
             (long long) about->stx_btime.tv_sec, about->stx_btime.tv_nsec);
}

static void keep_copy(int fd, const char *path, const char *shadow) {
    char whose[128], fresh[PATH_MAX], kept[PATH_MAX];
    struct statx about;
    off_t at = 0;
    int in, out;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &about)) abort();
    identity(&about, whose, sizeof whose);
    snprintf(fresh, sizeof fresh, "%s/fresh", shadow);
    snprintf(kept, sizeof kept, "%s/data-%s", shadow, whose);
    in = REAL(open)(path, O_RDONLY);
    if (in < 0) return; /* unlinked: its data is nobody's */
    out = REAL(open)(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (out < 0) abort();
    while (at < (off_t) about.stx_size)
        if (sendfile(out, in, &at, about.stx_size - at) <= 0) break;
    close(in);
    close(out);
    if (rename(fresh, kept)) abort();
}

static void keep_names(const char *folder, const char *shadow) {
    char fresh[PATH_MAX], kept[PATH_MAX], whose[128];
    struct dirent *entry;
    DIR *entries = opendir(folder);
    FILE *list;
    snprintf(fresh, sizeof fresh, "%s/names.fresh", shadow);
    snprintf(kept, sizeof kept, "%s/names", shadow);
    list = fopen(fresh, "w");
    if (!entries || !list) abort();
    while ((entry = readdir(entries))) {
        struct statx about;
        if (!strstr(entry->d_name, "state.db")) continue;
        if (statx(dirfd(entries), entry->d_name, 0, STATX_BASIC_STATS | STATX_BTIME,
                  &about))
            continue;
        identity(&about, whose, sizeof whose);
        fprintf(list, "%s %s\n", whose, entry->d_name);
    }
    fclose(list);
    closedir(entries);
    if (rename(fresh, kept)) abort();
}

static int synced(int fd, int (*sync)(int)) {
    char path[PATH_MAX];
    const char *shadow = getenv("FAULTS_SHADOW"), *folder = getenv("FAULTS_FOLDER");
    int known = path_of(fd, path), result;
    if (known && is_ours(path) && (flagged("eio-sync", 0) || flagged("eio-sync-once", 1))) {
        errno = EIO;
        return -1;
    }
    result = sync(fd);
    if (result == 0 && known && shadow && folder) {
        pthread_mutex_lock(&copying);
        if (strcmp(path, folder) == 0) keep_names(path, shadow);
        else if (is_ours(path)) keep_copy(fd, path, shadow);
        pthread_mutex_unlock(&copying);
    }
    return result;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
