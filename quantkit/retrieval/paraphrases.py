"""Needles and questions that share no content word: what NoLiMa (arXiv:2502.05167) asks for.

A model that only looks for the words of the question finds nothing; it has to know that an animal
doctor is a veterinarian. People and facts are combined freely; the wording is quantkit's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_PEOPLE = """
veterinarian: animal doctor
baker: maker of bread
pilot: person who flies planes
dentist: tooth doctor
lawyer: legal adviser
carpenter: expert in wood
plumber: fitter of pipes
farmer: grower of crops
teacher: school instructor
librarian: keeper of books
chef: head of the kitchen
angler: person who catches trout
tailor: maker of suits
cobbler: mender of shoes
florist: seller of flowers
jeweller: seller of bracelets
optician: maker of spectacles
photographer: taker of pictures
journalist: newspaper reporter
novelist: author of stories
poet: writer of verses
composer: creator of symphonies
violinist: fiddle player
drummer: percussion player
sculptor: artist in marble
painter: artist with a brush
architect: designer of buildings
astronomer: observer of stars
geologist: expert on rocks
botanist: scholar of plants
entomologist: insect researcher
chemist: laboratory scientist
mathematician: prover of theorems
historian: scholar of the past
archaeologist: digger of ruins
economist: analyst of markets
banker: lender of money
accountant: keeper of ledgers
cashier: worker at the till
judge: head of the court
constable: police officer
fireman: extinguisher of blazes
soldier: fighter in the army
sailor: deckhand on a ship
astronaut: traveller in space
mechanic: repairer of engines
electrician: installer of wiring
mason: layer of bricks
miner: digger of coal
blacksmith: forger of iron
gardener: tender of the lawn
beekeeper: producer of honey
shepherd: guardian of lambs
butcher: seller of meat
barber: cutter of hair
nurse: hospital attendant
pharmacist: dispenser of medicine
midwife: helper at births
psychologist: counsellor of minds
priest: leader of the parish
monk: dweller in the abbey
diplomat: envoy to foreign countries
interpreter: translator of speeches
acrobat: circus performer
magician: conjuror of tricks
goalkeeper: football player between the posts
referee: umpire of the match
cyclist: racer on two wheels
jockey: rider of racehorses
swimmer: athlete in the pool
weaver: maker of carpets
potter: shaper of clay
brewer: producer of beer
"""
_FACTS = """
locker: The {} opens the locker with {}. | Which combination releases the cabinet of the {}?
dial: You can ring up the {} by dialling {}. | What is the telephone contact of the {}?
plate: The {} drives a car with the plate {}. | Which registration is on the vehicle of the {}?
club: The {} joined the club as member {}. | Which enrolment has the {} in the association?
raffle: The {} won the raffle with ticket {}. | Which lottery slip brought luck to the {}?
wages: The {} earned {} crowns that year. | How high was the annual income of the {}?
steps: The {} walked {} steps that week. | How far did the {} go on foot within seven days?
house: The {} paid {} for the house. | What did the home of the {} cost?
stamps: The {} collected {} stamps. | How large is the philatelic treasure of the {}?
mayor: The {} was elected mayor with {} ballots. | How many votes put the {} into the town hall?
"""


@dataclass(frozen=True)
class Paraphrase:
    """A person and a fact about them, in the words of the needle and in those of the question.

    Attributes:
        key: PERSON-FACT, both as in the needle.
        told: the needle, with a place for the value.
    """

    key: str
    told: str
    asked: str

    def sentence(self, value: str) -> str:
        return self.told.format(value)

    @property
    def question(self) -> str:
        return f"{self.asked} Answer with the number only."


def draw_paraphrases(rng: random.Random) -> list[Paraphrase]:
    """All of them; no person comes again before everybody has come."""
    people = [line.split(": ") for line in _PEOPLE.strip().splitlines()]
    facts = [line.split(": ", 1) for line in _FACTS.strip().splitlines()]
    rng.shuffle(people)
    rng.shuffle(facts)
    pairs = []
    for turn in range(len(facts)):
        for place, (person, description) in enumerate(people):
            fact, wording = facts[(place + turn) % len(facts)]
            told, asked = wording.split(" | ")
            pairs.append(
                Paraphrase(f"{person}-{fact}", told.format(person, "{}"), asked.format(description))
            )
    return pairs
