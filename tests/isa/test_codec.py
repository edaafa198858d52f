"""The instruction set: table, encoder, decoder, listing and manual agree."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepool.errors import InstructionError
from corepool.isa import codec, listing, manual
from corepool.isa.table import (
    INSTRUCTION_BYTES,
    INSTRUCTIONS,
    OPCODE,
    Opcode,
    Target,
    check_table,
    fields_of,
    reserved_mask,
)


@st.composite
def instructions(draw):
    opcode = draw(st.sampled_from(list(INSTRUCTIONS)))
    values = {f.name: draw(st.integers(f.low, f.high)) for f in fields_of(opcode) if f is not OPCODE}
    return opcode, values


def test_fields_neither_overlap_nor_straddle_words():
    check_table()


@given(instructions())
def test_decoding_gives_back_what_was_encoded(instruction):
    opcode, values = instruction
    data = codec.encode(opcode, **values)
    assert len(data) == INSTRUCTION_BYTES
    assert codec.decode(data) == codec.Decoded(opcode, values)


@given(instructions())
def test_a_line_of_the_listing_parses_back_to_the_same_bytes(instruction):
    opcode, values = instruction
    data = codec.encode(opcode, **values)
    assert listing.parse(listing.line(data)) == data


@given(st.binary(min_size=INSTRUCTION_BYTES, max_size=INSTRUCTION_BYTES))
def test_any_bytes_decode_to_themselves_or_are_refused(data):
    try:
        decoded = codec.decode(data)
    except InstructionError:
        return
    assert codec.encode(decoded.opcode, **decoded.values) == data


def test_bytes_written_out_by_hand():
    # opcode 1, raise_next (bit 7), target 1 (bit 8), rows 1 (bit 16), address 0x40 (bit 32), blocks 1 (bit 64),
    # pixels 3 (bit 80), local 5 (bit 160)
    data = codec.encode(
        Opcode.LOAD, raise_next=1, target=Target.WEIGHT, rows=1, address=0x40, blocks=1, pixels=3, local=5
    )
    assert (
        data.hex()
        == "81010100" + "40000000" + "0100" + "0300" + "00000000" + "00000000" + "0500" + "0000" + "0000000000000000"
    )
    assert listing.line(data) == "LOAD   raise_next target=1 rows=1 address=64 blocks=1 pixels=3 local=5"


@pytest.mark.parametrize("opcode", [0, *range(10, 16)])
def test_undefined_opcodes_are_refused(opcode):
    with pytest.raises(InstructionError, match=f"opcode {opcode} is undefined"):
        codec.decode(bytes([opcode]) + bytes(31))


@pytest.mark.parametrize("opcode", list(INSTRUCTIONS))
def test_every_reserved_bit_is_refused(opcode):
    good = {f.name: max(f.low, 1) if f.positive else 0 for f in fields_of(opcode) if f is not OPCODE}
    word = int.from_bytes(codec.encode(opcode, **good), "little")
    mask = reserved_mask(opcode)
    assert mask
    for bit in range(256):
        if mask >> bit & 1:
            with pytest.raises(InstructionError, match="reserved"):
                codec.decode((word | 1 << bit).to_bytes(32, "little"))


def test_values_out_of_range_and_unknown_fields_are_named():
    with pytest.raises(InstructionError, match=r"LOAD\.rows must be 1\.\.65535, not 0"):
        codec.encode(Opcode.LOAD, rows=0)
    with pytest.raises(InstructionError, match=r"CONV\.start_x must be -256\.\.255, not 256"):
        codec.encode(Opcode.CONV, **_smallest(Opcode.CONV) | {"start_x": 256})
    with pytest.raises(InstructionError, match="SYNC has no field rows"):
        codec.encode(Opcode.SYNC, cores=1, rows=1)
    with pytest.raises(InstructionError, match="has no field 'wait_prev'"):
        listing.parse("LOAD wait_prev")


def _smallest(opcode):
    return {f.name: 1 for f in fields_of(opcode) if f.positive}


def test_a_listing_shows_undefined_words_in_place():
    stream = codec.encode(Opcode.SYNC, layer=2, cores=3) + bytes(32) + codec.encode(Opcode.END)
    lines = list(listing.listing(stream))
    assert lines[0] == "     0  SYNC   layer=2 cores=3"
    assert "opcode 0 is undefined" in lines[1]
    assert lines[2] == "     2  END"


def test_the_manual_names_every_field_and_its_file_is_fresh():
    text = manual.manual()
    for opcode in INSTRUCTIONS:
        for spec in fields_of(opcode):
            assert f"`{spec.name}`" in text
    path = Path(__file__).parents[2] / "docs" / "isa.md"
    assert manual.main([str(path), "--check"]) == 0


def test_a_stale_manual_is_noticed(tmp_path, capsys):
    path = tmp_path / "isa.md"
    path.write_text(manual.manual().replace("LOAD", "LAOD", 1))
    assert manual.main([str(path), "--check"]) == 1
    assert "is stale" in capsys.readouterr().err
