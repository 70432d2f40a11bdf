"""Names and cities that no question of the corpus holds, of which the published adaptors learn how names sound."""

from __future__ import annotations

import random
from itertools import chain

from speechzoo.quickstart.facts import FORMS

NAMES = (
    "Aaron Abigail Adam Adrian Agnes Alan Albertina Alex Alexander Alexandra Alfred Alison Alma Amanda Amber Amelia "
    "Amy Andrea Andrew Angela Anita Annabel Anthony April Ashley Audrey Austen Ava Beatrice Becky Bella Bernard Beth "
    "Bianca Bill Blake Bob Brandon Brenda Brian Bridget Bruce Bryan Caleb Calvin Cameron Camilla Carl Carla Carmen "
    "Caroline Catherine Cecilia Charles Charlotte Chloe Chris Christina Christopher Clara Clark Claudia Colin Connor "
    "Craig Crystal Curtis Cynthia Damian Dan Danielle Darren Dave Dawn Dean Deborah Dennis Derek Diane Dolores "
    "Dominic Donald Donna Dora Doris Dorothy Douglas Doug Dylan Earl Ed Eddie Edgar Edith Edwin Eileen Elaine Eleanor "
    "Elena Eli Elijah Elise Elizabeth Ella Ellen Elliot Elsa Emily Eric Erica Erin Ernest Esther Ethan Eugene Eva "
    "Evan Evelyn Faith Felix Fiona Flora Florian Frances Francis Fred Gabriel Gail Gary Gavin Gerald Gilbert Gina "
    "Glen Gloria Gordon Grace Graham Grant Greg Gregory Greta Gus Guy Hannah Harold Harriet Harry Harvey Hazel "
    "Heather Hector Heidi Herbert Hilary Holly Hope Howard Hugh Hugo Ian Ida Ingrid Irene Iris Isaac Isabel Ivan Ivy "
    "Jack Jackson Jacob Jake James Jamie Jane Janet Janice Jasmine Jason Jean Jeff Jeffrey Jennifer Jeremy Jerry "
    "Jessica Jill Jim Joan Joanna Joe Joel John Jonathan Jordan Joseph Joshua Joy Joyce Juan Judith Judy Julian "
    "Juliet June Justin Karen Karl Kate Katherine Kathleen Katie Keith Kelly Ken Kenneth Kim Kirk Kyle Lance Larry "
    "Lauren Lawrence Leah Leo Leon Leonard Leslie Lewis Liam Lillian Lily Lisa Lloyd Logan Lois Lola Lorraine Louis "
    "Louise Lucas Lucy Luke Luna Lydia Lynn Mabel Madeline Malcolm Marcus Margaret Marianne Marie Marilyn Marion Mark "
    "Marsha Marshall Mary Mason Matthew Maurice Max Maya Megan Melanie Melissa Mia Michael Michelle Miles Mildred "
    "Miranda Mitchell Molly Morgan Muriel Myra Nadia Naomi Natalie Nathan Neil Nicholas Nicole Nigel Nina Noah Nora "
    "Norman Olga Owen Pamela Paul Paula Pauline Pedro Peggy Penelope Perry Phil Philip Phoebe Phyllis Priscilla "
    "Quentin Ralph Ramona Randy Raymond Rebecca Regina Rex Rhonda Richard Rick Rita Roger Roland Ron Ronald Rosa Rose "
    "Rosemary Ross Roy Ruby Rupert Russell Ruth Ryan Sabrina Sally Sam Samantha Sandra Scott Sean Sebastian Serena "
    "Seth Shane Shannon Sharon Sheila Shirley Sidney Silvia Sonia Stanley Stella Stephanie Stephen Steve Stewart "
    "Stuart Sue Sylvia Tanya Tara Ted Terry Theo Theodore Tim Timothy Tina Todd Tom Tony Tracy Travis Trevor Tyler "
    "Valerie Vanessa Vera Vernon Veronica Vincent Viola Violet Virginia Vivian Wallace Walter Wanda Warren Wayne "
    "Wendy Wesley Will William Winston Xavier Yvonne Zachary Zoe"
).split()
CITIES = (
    "Aberdeen Albany Albuquerque Alexandria Amsterdam Anchorage Antwerp Baltimore Bangkok Basel Belfast Bergen Bilbao "
    "Birmingham Bogota Bologna Bonn Bordeaux Bremen Brighton Brisbane Bristol Brooklyn Bruges Buffalo Burlington "
    "Calcutta Calgary Cambridge Cardiff Charleston Charlotte Cheyenne Cincinnati Cologne Columbus Corinth Coventry "
    "Damascus Darwin Dayton Delhi Derby Dortmund Dover Dresden Duluth Durham Edinburgh Edmonton Exeter Fargo "
    "Frankfurt Fresno Genoa Georgetown Ghent Granada Greenwich Halifax Hanover Hartford Hiroshima Hobart Honolulu "
    "Indianapolis Istanbul Jacksonville Jakarta Jerusalem Johannesburg Karachi Kingston Kyoto Lancaster Leeds "
    "Leicester Leipzig Lexington Lincoln Louisville Lucerne Lyon Madison Malaga Manila Marseille Melbourne Milwaukee "
    "Minneapolis Mobile Montgomery Mumbai Naples Nashville Newark Newcastle Nice Norwich Nottingham Oakland Omaha "
    "Osaka Oxford Palermo Perth Philadelphia Pittsburgh Plymouth Porto Providence Quebec Raleigh Reno Richmond Riga "
    "Rochester Rotterdam Sacramento Salem Salzburg Savannah Seville Shanghai Sheffield Singapore Southampton Spokane "
    "Stockton Strasbourg Stuttgart Sunderland Syracuse Tampa Tangier Toledo Topeka Toulouse Trenton Tucson Tulsa "
    "Turin Utrecht Valencia Vancouver Verona Warwick Wellington Winchester Worcester Wuppertal York Zurich"
).split()

GREETINGS, _ = FORMS["greeting"]
OF_NAMES = (*FORMS["name"][0], FORMS["greeting"][1], FORMS["name"][1], "{name} and {other} live in {city}.")
OF_CITIES = (*FORMS["home"][0], FORMS["home"][1])


def named_sentences(rng: random.Random, ways: int = 3) -> list[str]:
    """Sentences like those of the corpus about other people and places: `ways` for each of the names and cities."""
    slots = {"other": NAMES, "name": NAMES, "city": CITIES}
    wanted = chain(
        (("name", name, form) for name in NAMES for form in rng.sample([*GREETINGS, *OF_NAMES], ways)),
        (("city", city, form) for city in CITIES for form in rng.sample(OF_CITIES, ways)),
    )
    filled = [form.format(**{k: rng.choice(v) for k, v in slots.items()} | {slot: word}) for slot, word, form in wanted]
    return sorted(set(filled))
