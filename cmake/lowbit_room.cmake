# One static library per room of src/, linked along the staircase of ARCHITECTURE.md, with its unit tests
# beside it.
#
#   lowbit_room(NAME text SOURCES bpe.cc ... LINK lowbit_base TESTS bpe_test.cc ...)

add_library(lowbit_options INTERFACE)
target_include_directories(lowbit_options INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>)
target_compile_options(lowbit_options INTERFACE -Wall -Wextra -Wno-missing-field-initializers -ffp-contract=off
  -fno-math-errno)
target_compile_definitions(lowbit_options INTERFACE $<$<CONFIG:Debug>:LOWBIT_CHECKS=1>)
if(LOWBIT_SANITIZE)
  target_compile_definitions(lowbit_options INTERFACE LOWBIT_CHECKS=1)
  target_compile_options(lowbit_options INTERFACE -fsanitize=${LOWBIT_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(lowbit_options INTERFACE -fsanitize=${LOWBIT_SANITIZE})
endif()
if(LOWBIT_FUZZ)
  target_compile_options(lowbit_options INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(LOWBIT_COVERAGE)
  target_compile_options(lowbit_options INTERFACE --coverage)
  target_link_options(lowbit_options INTERFACE --coverage)
endif()

function(lowbit_test NAME)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${NAME} ${ARG_SOURCES})
  target_link_libraries(${NAME} PRIVATE ${ARG_LINK} lowbit_options GTest::gtest_main)
  target_include_directories(${NAME} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${NAME} PRIVATE LOWBIT_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  set(labels)
  if(ARG_LABELS)
    set(labels LABELS "${ARG_LABELS}")
  endif()
  gtest_discover_tests(${NAME} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 900 ${labels})
endfunction()

function(lowbit_room)
  cmake_parse_arguments(ARG "" "NAME" "SOURCES;LINK;PRIVATE_LINK;TESTS" ${ARGN})
  add_library(lowbit_${ARG_NAME} STATIC ${ARG_SOURCES})
  target_link_libraries(lowbit_${ARG_NAME} PUBLIC ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK} lowbit_options)
  set_property(GLOBAL APPEND PROPERTY LOWBIT_ROOMS lowbit_${ARG_NAME})
  if(LOWBIT_TESTS AND ARG_TESTS)
    lowbit_test(lowbit_${ARG_NAME}_test SOURCES ${ARG_TESTS} LINK lowbit_${ARG_NAME})
  endif()
endfunction()
