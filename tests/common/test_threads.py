"""helpers/common/threads.py: order, errors, and an end."""

import itertools
import threading
import time

import pytest

from helpers.common.threads import Writer, read_ahead


def test_reading_ahead_keeps_order_and_errors_and_stops_when_left():
    made, threads = [], set()

    def items():
        for i in range(10):
            made.append(i)
            threads.add(threading.current_thread())
            yield i
        raise OSError("after the last")

    seen = []
    with pytest.raises(OSError, match="after the last"):
        for item in read_ahead(items()):
            seen.append(item)
    assert seen == list(range(10)) and threading.current_thread() not in threads
    made.clear()
    walk = read_ahead(items())
    assert [next(walk), next(walk)] == [0, 1]
    walk.close()
    time.sleep(0.1)
    assert len(made) <= 6
    assert list(read_ahead(itertools.islice(itertools.count(), 4))) == [0, 1, 2, 3]


def test_files_are_written_on_other_threads_and_all_of_them(tmp_path):
    threads = set()

    def save(path, text):
        threads.add(threading.get_ident())
        path.write_text(text)

    with Writer() as write:
        for i in range(40):
            write(save, tmp_path / str(i), str(i))
    assert sorted(int(path.read_text()) for path in tmp_path.iterdir()) == list(range(40))
    assert threading.get_ident() not in threads


def test_what_cannot_be_written_ends_the_run_and_an_error_of_ones_own_is_not_hidden(tmp_path):
    def save():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Writer() as write:
        write(save)
    done = []
    with pytest.raises(KeyboardInterrupt), Writer() as write:
        write(save)
        write(done.append, 1)
        raise KeyboardInterrupt
    assert done == [1]  # what was begun is finished
