# The libraries that lowbit stands on, as imported targets lowbit_fmt, lowbit_pcre2, lowbit_utf8proc. Static archives are
# taken where they are installed (Debian's -dev packages have them; fmt is compiled in, src/base/fmt_library.cc), so that
# the binary needs nothing but libc. Included by the build and by the installed package.
find_package(Threads REQUIRED)

function(lowbit_archive TARGET ARCHIVE HEADER)
  if(TARGET ${TARGET})
    return()
  endif()
  find_library(LOWBIT_LIBRARY_${ARCHIVE} NAMES lib${ARCHIVE}.a ${ARCHIVE} REQUIRED)
  find_path(LOWBIT_INCLUDE_${ARCHIVE} ${HEADER} REQUIRED)
  mark_as_advanced(LOWBIT_LIBRARY_${ARCHIVE} LOWBIT_INCLUDE_${ARCHIVE})
  add_library(${TARGET} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(${TARGET} PROPERTIES IMPORTED_LOCATION "${LOWBIT_LIBRARY_${ARCHIVE}}"
    INTERFACE_INCLUDE_DIRECTORIES "${LOWBIT_INCLUDE_${ARCHIVE}}")
  if(LOWBIT_LIBRARY_${ARCHIVE} MATCHES "\\.a$" AND ARGN)
    set_target_properties(${TARGET} PROPERTIES INTERFACE_COMPILE_DEFINITIONS "${ARGN}")
  endif()
endfunction()

if(NOT TARGET lowbit_fmt)
  find_path(LOWBIT_INCLUDE_fmt fmt/core.h REQUIRED)
  add_library(lowbit_fmt INTERFACE IMPORTED GLOBAL)
  target_include_directories(lowbit_fmt INTERFACE "${LOWBIT_INCLUDE_fmt}")
endif()
lowbit_archive(lowbit_pcre2 pcre2-8 pcre2.h)
lowbit_archive(lowbit_utf8proc utf8proc utf8proc.h UTF8PROC_STATIC)
